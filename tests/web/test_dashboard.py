"""The dashboard in a real browser, on sale day."""

import itertools
import os
import re
import unittest
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import accessible
from browser import DESKTOP, PHONE, WALL, Page, open_browser
from shop import Shop, in_hours

SCRATCH = Path(os.environ["TEST_WEB_DIR"])

# Browser console: requests without a session.
NOT_SIGNED_IN = r"/(ops/session|ops/feed|admin/v1/\S+) - Failed to load resource: .*\b401\b"

# Browser console: the icon of a file that is not a page.
FAVICON = r"/favicon\.ico - Failed to load resource: .*\b404\b"

shop = None
driver = None


def setUpModule():
    global shop, driver
    shop = Shop(SCRATCH / "shop")
    unittest.addModuleCleanup(shop.stop)
    shop.start()
    driver = open_browser(SCRATCH / "profile")
    unittest.addModuleCleanup(driver.quit)


def forget_cookies():
    """Clears all cookies, also the one that only the operators' API gets."""
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})


class Dashboard(unittest.TestCase):
    """Signed in, in English, on a desktop. A test fails with errors in the browser's console."""

    maxDiff = None
    signs_in = True

    def setUp(self):
        self.expected_errors = [NOT_SIGNED_IN, FAVICON]
        self.page = Page(driver, shop.base)
        self.page.size(DESKTOP)
        self.page.open("/ops/assets/icon.svg")
        forget_cookies()
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        driver.get_log("browser")
        self.page.open()
        self.addCleanup(self.nothing_went_wrong)
        if self.signs_in:
            self.page.sign_in(shop.token)

    def nothing_went_wrong(self):
        lines = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        wrong = [line for line in lines if not any(re.search(pattern, line) for pattern in self.expected_errors)]
        self.assertEqual(wrong, [], "the browser's console")


class SigningIn(Dashboard):
    signs_in = False

    def test_without_a_session_nothing_is_told(self):
        self.page.until(self.page.signed_out, "the page asks for a token")
        self.assertFalse(self.page.find("main").is_displayed())
        for path in ("/ops/feed", "/ops/session", "/admin/v1/audit", "/admin/v1/operator-log"):
            status, answer = shop.status("GET", path)
            self.assertEqual((status, answer["errorCode"]), (401, "UNAUTHORIZED"), path)
        # Escape does not close the dialog.
        self.page.keys(Keys.ESCAPE, Keys.ESCAPE)
        self.assertTrue(self.page.signed_out())
        self.page.screenshot("sign-in")

    def test_a_wrong_token_is_refused(self):
        self.page.until(self.page.signed_out, "the page asks for a token")
        self.page.find("#token").send_keys("not-the-operators-token", Keys.ENTER)
        self.page.until_equal("That is not an operator’s token.", lambda: self.page.text("#sign-in-error"))
        self.assertTrue(self.page.signed_out())
        self.assertEqual(driver.get_cookies(), [])
        self.page.find("#token").clear()
        self.page.sign_in(shop.token)

    def test_a_session_is_a_cookie_that_scripts_cannot_read(self):
        self.page.sign_in(shop.token)
        (cookie,) = driver.get_cookies()
        self.assertTrue(cookie["httpOnly"])
        self.assertEqual(cookie["sameSite"], "Strict")
        self.assertNotIn(shop.token, cookie["value"])
        self.assertNotIn(shop.token, driver.current_url)
        self.assertEqual(driver.execute_script("return document.cookie"), "")
        # The cookie alone is refused: the API requires a header that no other site can send.
        session = {"cookie": f"{cookie['name']}={cookie['value']}"}
        self.assertEqual(shop.status("GET", "/admin/v1/operator-log", None, session)[0], 401)
        self.assertEqual(shop.status("GET", "/admin/v1/operator-log", None, session | {"x-firstcome-ops": "1"})[0], 200)

    def test_with_nothing_but_the_keyboard(self):
        self.page.until(self.page.signed_out, "the page asks for a token")
        self.assertEqual(driver.switch_to.active_element.get_attribute("id"), "token")
        self.page.keys(shop.token, Keys.ENTER)
        self.page.live()
        driver.execute_script("document.activeElement.blur()")
        self.assertEqual(self.page.tab().get_attribute("class"), "skip")
        self.page.keys(Keys.ENTER)
        self.assertEqual(driver.switch_to.active_element.get_attribute("id"), "main")
        # Every element in the tab order shows its focus.
        seen = 0
        while (focused := self.page.tab()).tag_name != "body":
            seen += 1
            self.assertLess(seen, 200, "the focus is caught")
            outline = focused.value_of_css_property("outline-style")
            self.assertNotEqual(outline, "none", focused.get_attribute("outerHTML")[:120])
        self.assertGreater(seen, 15)
        # The tabs are one stop in the tab order; arrow keys move between them.
        driver.execute_script("document.getElementById('tab-TODAY').focus()")
        self.page.keys(Keys.ARROW_RIGHT)
        self.assertEqual(driver.switch_to.active_element.get_attribute("id"), "tab-THREE_DAYS")
        self.assertEqual(self.page.find("#tab-THREE_DAYS").get_attribute("aria-selected"), "true")
        self.page.keys(Keys.END)
        self.assertEqual(driver.switch_to.active_element.get_attribute("id"), "tab-MONTHLY")

    def test_signing_out(self):
        self.page.sign_in(shop.token)
        cookie = driver.get_cookies()[0]
        self.page.click("#sign-out")
        self.page.until(self.page.signed_out, "the page asks for a token again")
        self.assertEqual(driver.get_cookies(), [])
        self.assertEqual(driver.execute_script("return sessionStorage.length"), 0)
        # The old cookie is refused.
        old = {"cookie": f"{cookie['name']}={cookie['value']}"}
        self.assertEqual(shop.status("GET", "/ops/session", None, old)[0], 401)

    def test_a_session_that_ends_keeps_the_page(self):
        self.page.sign_in(shop.token)
        self.page.click("#new-product")
        self.page.fill(productName="Kept", price="1000", stockQuantity="3", category="TOP")
        forget_cookies()
        self.page.dialog().find_element(By.CSS_SELECTOR, ".primary").click()
        self.page.until(self.page.signed_out, "the page asks for a token")
        self.assertIn("session has ended", self.page.text("#sign-in-lead"))
        self.page.find("#token").send_keys(shop.token, Keys.ENTER)
        self.page.live()
        # The form keeps its values, and can be submitted.
        self.assertEqual(self.page.dialog().find_element(By.NAME, "productName").get_attribute("value"), "Kept")
        self.page.submit()
        self.page.until(lambda: "Kept is there" in self.page.text("#announce"), "the product is made")


class Rush(Dashboard):
    def test_a_rush_is_followed_to_the_unit(self):
        coupon = shop.campaign("RUSH-250", 250)
        crowd = shop.users(600)
        self.page.until_equal(250, lambda: self.page.left(coupon))
        self.assertEqual(self.page.campaign(coupon, "state"), "Open")

        self.assertEqual(shop.rush(coupon, crowd[:90]), 90)
        self.page.until_equal((160, 90), lambda: (self.page.left(coupon), self.page.issued(coupon)))
        self.assertEqual(shop.rush(coupon, crowd[90:]), 160)
        self.page.until_equal((0, 250), lambda: (self.page.left(coupon), self.page.issued(coupon)))
        self.page.until_equal("All gone", lambda: self.page.campaign(coupon, "state"))

        truth = shop.admin("GET", f"/coupons/{coupon}")
        self.assertEqual((truth["remainingQuantity"], truth["issuedQuantity"]), (0, 250))

    def test_a_rush_under_way_has_a_rate_and_an_end(self):
        coupon = shop.campaign("RUSH-SLOW", 100_000)
        crowd = itertools.count(shop.users(50_000)[0])
        page = self.page
        with shop.customers(lambda: shop.take(coupon, next(crowd))):
            page.until(lambda: "a second" in page.campaign(coupon, "rate"), "a rate is shown")
            page.until(lambda: page.campaign(coupon, "pace").startswith("empty in"), "an end is foreseen")
            page.until(lambda: (page.number("#vitals [data-part=requests] .figure") or 0) > 0, "requests are counted")
            page.until(lambda: "ms" in page.text("#vitals [data-part=p99] .figure"), "answers take time")
            page.until(lambda: "/api/v1/coupons/issue" in page.text("#by-route tbody"), "the route is listed")
            page.until(lambda: page.find("#chart-requests canvas").is_displayed(), "there is a chart")
            self.assertIn("Requests a second over the last fifteen minutes", page.find("#chart-requests").get_attribute("aria-label"))
            page.until(lambda: page.find(f".campaign[data-coupon='{coupon}'] .campaign-line .stroke").get_attribute("d"), "the line is drawn")
        truth = shop.admin("GET", f"/coupons/{coupon}")["remainingQuantity"]
        self.page.until_equal(truth, lambda: self.page.left(coupon))
        # After the rush the rate is zero.
        self.page.until(lambda: "none taken" in self.page.campaign(coupon, "rate"), "the rate is zero")

    def test_refusals_are_told_by_their_reason(self):
        coupon = shop.campaign("RUSH-ONE", 1)
        crowd = shop.users(200)
        self.assertEqual(shop.rush(coupon, crowd[:1]), 1)
        late = itertools.cycle(crowd[1:])
        with shop.customers(lambda: shop.take(coupon, next(late)), 1):
            self.page.until(lambda: "coupons all gone" in self.page.text("#refusals"), "the reason is named")
            self.page.until(lambda: "COUPON_OUT_OF_STOCK" in self.page.text("#refusals"), "and its code")

    def test_orders_and_stock_are_the_truth(self):
        product = shop.product("Web sneaker <b>&", 10_000, 100)
        buyers = shop.users(30, balance=1_000_000)
        before = {status: shop.orders(status) for status in ("PENDING", "PAID", "FAILED", "CANCELLED")}
        placed = [(user, shop.order(user, product, 2)) for user in buyers]
        for user, order in placed[:20]:
            shop.pay(user, order)
        for user, order in placed[20:25]:
            shop.cancel(user, order)
        # 30 × 2 ordered: 40 sold, 10 given back, 10 held.
        self.page.until_equal((50, 10, 40), lambda: self.page.stock(product))
        expected = {"PENDING": before["PENDING"] + 5, "PAID": before["PAID"] + 20, "FAILED": before["FAILED"], "CANCELLED": before["CANCELLED"] + 5}
        self.page.until_equal(expected, self.page.orders)
        self.assertEqual({status: shop.orders(status) for status in expected}, expected)
        for scope in ("THREE_DAYS", "WEEKLY", "MONTHLY", "TODAY"):
            self.page.click(f"#tab-{scope}")
            self.page.until_equal(40, lambda: self.page.number(self.page.part(f".ranking [data-product='{product}']", "units")))
        # Markup in a name is shown as text.
        self.assertEqual(self.page.text(self.page.part(f".stock [data-product='{product}']", "name")), "Web sneaker <b>&")
        self.assertEqual(self.page.number(self.page.part("#projection", "dead")), 0)
        self.page.until_equal("ok", self.page.level)

        for user, order in placed[25:]:
            shop.pay(user, order)
        self.page.until_equal((50, 0, 50), lambda: self.page.stock(product))


class Actions(Dashboard):
    def test_a_campaign_is_made_closed_and_opened_again(self):
        page = self.page
        page.click("#new-campaign")
        page.fill(couponCode="FROM-THE-PAGE", discountType="PERCENTAGE", discountAmount="15", totalQuantity="40", expiredAt=in_hours(48)[:16])
        page.submit()
        made = page.until(lambda: re.search(r"FROM-THE-PAGE is there \(number (\d+)\)", page.text("#announce")), "it says so")
        coupon = int(made.group(1))
        truth = shop.admin("GET", f"/coupons/{coupon}")
        self.assertEqual((truth["discountType"], truth["discountAmount"], truth["totalQuantity"]), ("PERCENTAGE", 15, 40))
        page.until_equal(40, lambda: page.left(coupon))
        (first, second) = shop.users(2)
        self.assertEqual(shop.take(coupon, first)[0], 200)

        # The default is no: Enter presses the focused button.
        page.click(f".campaign[data-coupon='{coupon}'] [data-action=close]")
        self.assertIn("Nobody can take", page.dialog().text)
        page.keys(Keys.ENTER)
        page.until(lambda: not page.all("dialog[open]"), "the question is gone")
        self.assertEqual(page.campaign(coupon, "state"), "Open")

        page.click(f".campaign[data-coupon='{coupon}'] [data-action=close]")
        page.submit()
        page.until_equal("Closed", lambda: page.campaign(coupon, "state"))
        page.until(lambda: shop.take(coupon, second)[1].get("errorCode") == "INVALID_COUPON", "nobody gets one any more")

        driver.execute_script("document.querySelector('.ended').open = true")
        page.click(f".campaign[data-coupon='{coupon}'] [data-action=times]")
        page.fill(closesAt=in_hours(24))
        page.submit()
        page.until_equal("Open", lambda: page.campaign(coupon, "state"))
        page.until(lambda: shop.take(coupon, second)[0] == 200, "the next one gets one")
        page.until_equal(38, lambda: page.left(coupon))

    def test_a_scheduled_campaign_is_opened(self):
        coupon = shop.campaign("LATER", 5, opens_in_hours=3)
        page = self.page
        page.until_equal("Scheduled", lambda: page.campaign(coupon, "state"))
        page.click(f".campaign[data-coupon='{coupon}'] [data-action=open]")
        page.submit()
        page.until_equal("Open", lambda: page.campaign(coupon, "state"))
        (user,) = shop.users(1)
        page.until(lambda: shop.take(coupon, user)[0] == 200, "one can be taken")

    def test_a_product_is_made_and_restocked(self):
        page = self.page
        page.click("#new-product")
        page.fill(productName="Page sneaker", price="59000", stockQuantity="12", category="SHOES")
        page.submit()
        made = page.until(lambda: re.search(r"Page sneaker is there \(number (\d+)\)", page.text("#announce")), "it says so")
        product = int(made.group(1))
        # The product is listed once it has an order.
        (buyer,) = shop.users(1, balance=1_000_000)
        order = shop.order(buyer, product, 2)
        page.until_equal((10, 2, 0), lambda: page.stock(product))
        shop.pay(buyer, order)
        page.until_equal((10, 0, 2), lambda: page.stock(product))
        page.click(f".stock [data-product='{product}'] [data-action=stock]")
        page.fill(stockDelta="30")
        page.submit()
        page.until_equal((40, 0, 2), lambda: page.stock(product))

        # Taking units away asks for a confirmation.
        page.click(f".stock [data-product='{product}'] [data-action=stock]")
        page.fill(stockDelta="-5")
        page.dialog().find_element(By.CSS_SELECTOR, ".primary").click()
        page.until(lambda: len(page.all("dialog[open]")) == 2, "it asks first")
        page.submit()
        page.until_equal((35, 0, 2), lambda: page.stock(product))

        # A refusal appears in the form, and changes nothing.
        page.click(f".stock [data-product='{product}'] [data-action=stock]")
        page.fill(stockDelta="-36")
        page.dialog().find_element(By.CSS_SELECTOR, ".primary").click()
        page.until(lambda: len(page.all("dialog[open]")) == 2, "it asks first")
        self.expected_errors.append(rf"/admin/v1/products/{product} - Failed to load resource: .*\b4\d\d\b")
        page.submit()
        page.until(lambda: page.dialog().find_element(By.CSS_SELECTOR, "form > .error").text, "it says why")
        page.close_dialogs()
        self.assertEqual(shop.status("GET", f"/api/v1/products/{product}")[1]["stockQuantity"], 35)

    def test_an_audit_is_run_from_the_page(self):
        page = self.page
        page.click("#run-audit")
        page.until(lambda: page.find("#audit .result").get_attribute("data-ok") == "true", "the books balance")
        self.assertEqual(page.find("#audit .result").text.strip(), "The books balance.")
        page.until(lambda: page.find("#run-audit").get_attribute("aria-disabled") is None, "another can be run")
        checks = page.all(".checks li")
        self.assertEqual(len(checks), len(shop.admin("GET", "/audit")["checks"]))

    def test_a_running_audit_shows_its_progress(self):
        page = self.page
        progress = "#audit [data-part=progress]"
        self.assertFalse(page.find(progress).is_displayed())
        with shop.positions_locked():
            page.click("#run-audit")
            page.until(lambda: "users: Redis" in page.text(page.part("#audit", "check")), "the check in progress is named")
            bar = page.find(progress)
            self.assertEqual((bar.get_attribute("role"), bar.get_attribute("aria-valuenow")), ("progressbar", "0"))
            for language, begins in (("en", "The remaining time is not known yet."), ("ko", "남은 시간을 아직 알 수 없습니다.")):
                page.choose(language=language)
                page.until_equal(begins, lambda: page.text(page.part("#audit", "rest")))
                self.assertEqual(driver.execute_script(accessible.STRUCTURE), [])
                self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
                page.screenshot(f"audit-running-{language}", whole=True)
                page.size(DESKTOP)
            page.choose(language="en")
        page.until(lambda: page.find("#audit .result").get_attribute("data-ok") == "true", "the books balance")
        page.until(lambda: not page.find(progress).is_displayed(), "the bar goes")

    def test_the_timeline_of_an_order_and_of_a_user(self):
        page = self.page
        product = shop.product("Told", 7_000, 5)
        (user,) = shop.users(1, balance=50_000)
        order = shop.order(user, product)
        shop.pay(user, order)
        page.click("#find")
        page.find("#timeline-id").send_keys(str(order["orderId"]), Keys.ENTER)
        page.until(lambda: page.text(".timeline-result h3") == f"Order {order['orderId']}", "the order is found")
        self.assertGreaterEqual(len(page.all(".timeline li")), 2)
        self.assertIn("7,000", page.text(".timeline-result"))
        page.click("input[value=user]")
        page.find("#timeline-id").clear()
        page.find("#timeline-id").send_keys(str(user), Keys.ENTER)
        page.until(lambda: page.text(".timeline-result h3") == f"User {user}", "the user is found")
        self.assertIn("43,000", page.text(".timeline-result"))
        page.screenshot("timeline")
        self.expected_errors.append(r"/admin/v1/users/9007199254740991/timeline - Failed to load resource: .*\b404\b")
        page.find("#timeline-id").clear()
        page.find("#timeline-id").send_keys("9007199254740991", Keys.ENTER)
        page.until_equal("There is no such user.", lambda: page.text(".timeline-result .error"))

    def test_actions_are_in_the_operator_log(self):
        page = self.page
        page.click("#new-campaign")
        page.fill(couponCode="ON-RECORD", discountAmount="500", totalQuantity="3", expiredAt=in_hours(30))
        page.submit()

        def recorded():
            page.close_dialogs()
            page.click("#operator-log")
            page.until(lambda: page.all(".operator-log tbody tr"), "the log has entries")
            return "ON-RECORD" in page.text(".operator-log")

        page.until(recorded, "the action is listed")
        row = next(text for text in page.each(".operator-log tbody tr", lambda row: row.text) if "ON-RECORD" in text)
        self.assertIn("admin", row)
        self.assertIn("201", row)
        self.assertNotIn(shop.token, page.text(".operator-log"))
        page.find("#operator-log-operator").send_keys("nobody", Keys.ENTER)
        page.until_equal("The log has no entry.", lambda: page.text("dialog[open] .nothing"))

    def test_a_dead_letter_is_looked_at_and_tried_again(self):
        page = self.page
        (user,) = shop.users(1)
        coupon = shop.campaign("DEAD-LETTER", 3)
        shop.sql(f"ALTER TABLE user_coupons ADD CONSTRAINT in_the_way CHECK (user_id <> {user})")
        self.addCleanup(shop.sql, "ALTER TABLE user_coupons DROP CONSTRAINT IF EXISTS in_the_way")
        # Redis decides; the projector cannot apply the event.
        self.assertEqual(shop.take(coupon, user)[0], 200)
        page.until_equal(1, lambda: page.number("[data-part=dead]"))
        page.click("#dead")
        page.until(lambda: page.all("dialog[open] .letters li"), "it is listed")
        self.assertIn("in_the_way", page.text("dialog[open] .letters"))
        page.click("dialog[open] .letters summary")
        self.assertIn("coupon_issued", page.text("dialog[open] .letters pre"))

        # While the cause remains, a retry is refused.
        self.expected_errors.append(r"/admin/v1/dead-letters/retry - Failed to load resource: .*\b409\b")
        page.click("dialog[open] .letters .action")
        page.submit()
        page.until(lambda: "It was refused again." in page.text("#announce"), "it says so")
        self.assertEqual(page.number("[data-part=dead]"), 1)
        self.assertEqual(shop.sql(f"SELECT count(*) FROM user_coupons WHERE user_id = {user}"), "0")

        shop.sql("ALTER TABLE user_coupons DROP CONSTRAINT in_the_way")
        page.click("dialog[open] .letters .action")
        page.submit()
        page.until_equal("There are no dead letters.", lambda: page.text("dialog[open] .nothing"))
        page.until_equal(0, lambda: page.number("[data-part=dead]"))
        self.assertEqual(shop.sql(f"SELECT coupon_id, status FROM user_coupons WHERE user_id = {user}"), f"{coupon}|AVAILABLE")


    def test_a_stuck_payment_is_told_and_settled(self):
        page = self.page
        (user,) = shop.users(1)
        product = shop.product("Stuck sneaker", 59_000, 3)
        orders = [shop.stuck_payment(user, product) for _ in range(2)]
        page.until_equal(2, lambda: page.number("[data-part=stuck]"))
        page.until(lambda: "2 payments are not settled" in page.text("#status") + page.text("#problems"), "the page says so")
        page.click("#stuck")
        page.until(lambda: len(page.all("dialog[open] .letters li")) == 2, "both are listed")
        self.assertIn(f"Order {orders[0]}", page.text("dialog[open] .letters"))
        self.assertEqual(accessible.nameless(driver), [])
        self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
        page.screenshot("stuck-payments")

        for order, outcome, status in ((orders[0], "DECLINED", "FAILED"), (orders[1], "APPROVED", "PAID")):
            page.click(f"dialog[open] .letters [aria-label='Settle the payment of order {order}']")
            page.fill(outcome=outcome, reason="seen in the provider's console")
            page.dialog().find_element(By.CSS_SELECTOR, ".primary").click()
            page.until(lambda: page.all("dialog[role=alertdialog]"), "it asks first")
            page.submit()
            page.until(lambda: not page.all("dialog[open] form.fields"), "it is done")
            timeline = shop.admin("GET", f"/orders/{order}/timeline")
            self.assertEqual(timeline["order"]["orderStatus"], status)
        page.until_equal("There are no stuck payments.", lambda: page.text("dialog[open] .nothing"))
        page.until_equal(0, lambda: page.number("[data-part=stuck]"))
        self.assertEqual(shop.sql(f"SELECT DISTINCT resolved_by, resolved_because FROM payments WHERE user_id = {user}"), "admin|seen in the provider's console")
        entries = shop.admin("GET", "/operator-log")["content"]
        self.assertTrue(any(f"orderId={orders[0]}" in entry["target"] and "console" in entry["detail"] for entry in entries))


class Recoveries(Dashboard):
    def setUp(self):
        super().setUp()
        self.addCleanup(shop.sql, "DELETE FROM recoveries")

    def test_a_closed_partition_and_its_recovery(self):
        page = self.page
        page.until_equal("ok", page.level)
        self.assertEqual(page.text("#recoveries .nothing"), "No partition was recovered.")
        self.expected_errors.append(r"status of 503")
        shop.redis("HSET", "{p0}:meta", "frozen", "kept shut by a test")
        page.until(lambda: page.text("#headline") == "Partition 0 does not decide (of 1).", "the headline says so")
        page.until_equal("bad", page.level)
        self.assertIn("kept shut by a test", page.text("#detail") + page.text("#problems"))
        closed = "#recoveries .closed [data-partition='0']"
        page.until_equal("Partition 0 does not decide", lambda: page.text(page.part(closed, "name")))
        self.assertIn("kept shut by a test", page.text(page.part(closed, "reason")))
        page.screenshot("recoveries-closed", whole=True)
        page.size(DESKTOP)

        shop.redis("HDEL", "{p0}:meta", "frozen")
        page.until(lambda: not page.all(closed), "the partition decides again")
        shop.rebuild()
        page.until_equal("Nothing lost", lambda: page.text("#recoveries tbody [data-part=outcome]"))
        self.assertEqual("an operator rebuilds the partition · begun by an operator", page.text("#recoveries tbody [data-part=detail]"))
        page.until(lambda: not page.all(closed), "the partition decides in its new epoch")
        page.until_equal("ok", page.level)
        self.assertIn("A partition was recovered within the hour.", page.text("#problems"))
        (row,) = shop.admin("GET", "/recoveries")["content"]
        self.assertEqual((row["begunBy"], row["outcome"]), ("OPERATOR", "COMPLETE"))

    def test_every_state_in_both_languages(self):
        page = self.page
        rows = [
            ("00000000-0000-7000-8000-000000000001", 4, "COMPLETE", 120, 120, "null", 0, 0, 1, "''", "'0:02:00'", "'0:01:57'"),
            ("00000000-0000-7000-8000-000000000002", 5, "WITHHELD", 131, 120, "131", 40, 7, 1, "''", "'0:01:30'", "'0:01:17'"),
            ("00000000-0000-7000-8000-000000000003", 6, "WITHHELD", 131, 120, "null", 1200, 0, 1, "''", "'0:01:00'", "'0:00:41'"),
            ("00000000-0000-7000-8000-000000000004", 7, "FAILED", 131, 120, "null", 0, 0, 3, "'it would discard 2 decisions'", "'0:00:50'", "'0:00:08'"),
            ("00000000-0000-7000-8000-000000000005", 0, "RUNNING", 131, 120, "null", 0, 0, 1, "''", "'0:00:06'", "null"),
        ]
        for identity, partition, outcome, acknowledged, projected, missing, units, coupons, attempts, detail, began, ended in rows:
            shop.sql(
                "INSERT INTO recoveries (id, partition, reason, found_seq, acknowledged_seq, projected_seq, missing_last_seq, silent, outcome, detail,"
                " epoch, withheld_units, withheld_coupons, attempts, noticed_at, began_at, ended_at) VALUES"
                f" ('{identity}', {partition}, 'acknowledged decisions are lost', 118, {acknowledged}, {projected}, {missing}, '', '{outcome}', {detail},"
                f" null, {units}, {coupons}, {attempts}, now() - {began}::interval, now() - {began}::interval, now() - {ended}::interval)"
            )
        shop.sql("UPDATE recoveries SET step = 'load', rows_done = 1200000, rows_expected = 5000000, eta_seconds = 38 WHERE outcome = 'RUNNING'")
        table = "#recoveries tbody"
        page.until(lambda: len(page.all(f"{table} tr")) == 5, "all are listed")
        page.until(lambda: "Partition 0 is being rebuilt" in page.text("#problems"), "the status line tells of the one in progress")
        text = page.text(table)
        for expected in ("Nothing lost", "May have lost", "Failed", "Rebuilding", "40 units · 7 coupons", "1,200 units", "decisions 121 to 131 may be missing",
                         "decisions from 121 on may be missing", "it would discard 2 decisions", "attempt 3",
                         "24% · 1,200,000 of 5,000,000 rows written back · about 38 s left"):
            self.assertIn(expected, text)
        newest_first = page.each(f"{table} tr", lambda row: row.get_attribute("data-recovery")[-1])
        self.assertEqual(newest_first, ["5", "4", "3", "2", "1"])
        for language, theme in (("en", "light"), ("ko", "dark")):
            page.choose(language=language, theme=theme)
            self.assertEqual(driver.execute_script(accessible.STRUCTURE), [])
            self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
            page.screenshot(f"recoveries-{language}-{theme}", whole=True)
            page.size(PHONE)
            self.assertEqual(driver.execute_script(accessible.WIDE), [], language)
            page.size(DESKTOP)
            page.click("#all-recoveries")
            page.until(lambda: len(page.all("dialog[open] tbody tr")) == 5, "the log has them, too")
            self.assertEqual(accessible.nameless(driver), [])
            self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
            page.screenshot(f"recoveries-log-{language}-{theme}")
            page.close_dialogs()
        page.until(lambda: "유실 가능" in page.text(table), "the rows speak Korean")
        self.assertIn("24% · 5,000,000개 중 1,200,000개 되돌려 씀 · 약 38초 남음", page.text(table))
        self.assertEqual(page.each(f"{table} [data-part=bar]", lambda bar: bar.is_displayed()), [True, False, False, False, False])


class Reading(Dashboard):
    """In both languages and themes, on a phone, a desktop and a wall."""

    def test_language_and_theme_are_switched_and_remembered(self):
        page = self.page
        page.until_equal("ok", page.level)
        self.assertIn("All is well", page.text("#headline"))
        page.click("#language")
        page.until(lambda: "모두 정상" in page.text("#headline"), "it speaks Korean")
        self.assertEqual(page.text("#campaigns-title"), "쿠폰 캠페인")
        grounds = {}
        for theme in ("light", "dark"):
            page.choose(theme=theme)
            grounds[theme] = page.find("body").value_of_css_property("background-color")
        self.assertNotEqual(grounds["light"], grounds["dark"])
        driver.refresh()
        page.live()
        self.assertEqual(page.find("html").get_attribute("lang"), "ko")
        self.assertEqual(page.find("html").get_attribute("data-theme"), "dark")
        page.until(lambda: "모두 정상" in page.text("#headline"), "it still speaks Korean")

    def test_both_languages_say_everything(self):
        keys = driver.execute_async_script("""
            const done = arguments[0];
            import('/ops/assets/messages.js').then(({ messages }) => done([Object.entries(messages.ko), Object.entries(messages.en)]), (error) => done(String(error)));
        """)
        korean, english = dict(keys[0]), dict(keys[1])
        self.assertEqual(sorted(korean), sorted(english))
        self.assertGreater(len(korean), 200)
        for key in korean:
            blanks = [set(re.findall(r"\{(\w+)", text)) for text in (korean[key], english[key])]
            self.assertEqual(*blanks, key)
        source = " ".join(
            driver.execute_async_script("fetch(arguments[0]).then((answer) => answer.text()).then(arguments[1])", f"/ops/assets/{name}")
            for name in ("../", "app.js", "actions.js", "sale.js", "engine.js", "timeline.js", "operator-log.js", "recoveries.js", "status.js", "dialogs.js", "charts.js", "forms.js", "products.js", "sales.js", "plan.js", "refund.js")
        )
        used = set(re.findall(r"\bt\('([\w.]+)'", source)) | set(re.findall(r'data-t(?:-label)?="([\w.]+)"', source))
        self.assertGreater(len(used), 100)
        self.assertEqual(sorted(used - set(korean)), [])

    def test_everyone_can_use_it(self):
        page = self.page
        page.click("#run-audit")
        page.until(lambda: page.all(".checks li"), "an audit is there")
        for language in ("en", "ko"):
            page.choose(language=language)
            for theme in ("light", "dark"):
                page.choose(theme=theme)
                with self.subTest(language=language, theme=theme):
                    self.assertEqual(accessible.nameless(driver), [])
                    self.assertEqual(driver.execute_script(accessible.STRUCTURE), [])
                    self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
        for opener in ("#new-campaign", "#new-product", "#sales", "#find", "#operator-log", "#dead", "#stuck", "#all-recoveries"):
            with self.subTest(dialog=opener):
                page.click(opener)
                dialog = page.dialog()
                self.assertTrue(dialog.accessible_name)
                self.assertEqual(accessible.nameless(driver), [])
                self.assertEqual(driver.execute_script(accessible.STRUCTURE), [])
                self.assertEqual(driver.execute_script(accessible.CONTRAST), [])
                self.assertTrue(driver.execute_script("return arguments[0].contains(document.activeElement)", dialog))
                page.keys(Keys.ESCAPE)
                page.until(lambda: not page.all("dialog[open]"), "Escape closes it")
                self.assertEqual(driver.switch_to.active_element.get_attribute("id"), opener[1:])

    def test_these_checks_can_fail(self):
        driver.execute_script("""
            const main = document.getElementById('main');
            const pale = document.createElement('p');
            pale.textContent = 'hardly to be read';
            pale.style.setProperty('color', 'rgb(128 128 128 / 0.4)');
            const wide = document.createElement('p');
            wide.textContent = 'wide';
            wide.style.setProperty('width', '4000px');
            main.append(document.createElement('button'), pale, wide, document.createElement('table'));
        """)
        self.assertEqual(len(accessible.nameless(driver)), 1)
        self.assertIn("a table without a caption", driver.execute_script(accessible.STRUCTURE))
        self.assertTrue(any("hardly to be read" in line for line in driver.execute_script(accessible.CONTRAST)))
        self.assertIn("P.", driver.execute_script(accessible.WIDE))

    def test_a_phone_does_not_scroll_sideways(self):
        page = self.page
        page.size(PHONE)
        page.until(lambda: page.find("#menu").is_displayed(), "there is a menu")
        page.click("#menu")
        self.assertEqual(page.find("#menu").get_attribute("aria-expanded"), "true")
        for language in ("en", "ko"):
            page.choose(language=language)
            self.assertEqual(driver.execute_script(accessible.WIDE), [], language)
        for opener in ("#new-campaign", "#new-product", "#sales", "#find", "#operator-log", "#dead", "#stuck", "#all-recoveries"):
            page.click(opener)
            dialog = page.dialog()
            self.assertEqual(driver.execute_script(accessible.WIDE), [], opener)
            wide = driver.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", dialog)
            self.assertLessEqual(wide[0], wide[1], opener)
            page.close_dialogs()

    def test_the_wall_has_numbers_and_nothing_to_click(self):
        page = self.page
        page.size(WALL)
        page.click("#wall")
        page.until(lambda: "wall" in page.find("html").get_attribute("class").split(), "it is on")
        displayed = page.each("main button, header button", lambda button: button.is_displayed() and button.get_attribute("outerHTML")[:80])
        self.assertEqual([button for button in displayed if button], [])
        size = driver.execute_script("return [document.documentElement.scrollHeight, innerHeight, document.documentElement.scrollWidth, innerWidth]")
        self.assertLessEqual(size[0], size[1])
        self.assertLessEqual(size[2], size[3])
        self.assertGreaterEqual(float(page.find("#vitals .figure").value_of_css_property("font-size")[:-2]), 40)
        # The wall has its own address.
        self.assertTrue(driver.current_url.endswith("#wall"))
        page.keys(Keys.ESCAPE)
        page.until(lambda: page.find("#wall").is_displayed(), "it is off")

    def test_pictures(self):
        """Screenshots of a sale, in target/web/."""
        page = self.page
        coupon = shop.campaign("AUTUMN-5000", 20_000)
        product = shop.product("에어 러너 '26", 129_000, 5_000)
        crowd = itertools.count(shop.users(20_000, balance=10_000_000)[0])
        shop.campaign("MIDNIGHT", 500, opens_in_hours=4)

        def customer():
            user = next(crowd)
            shop.take(coupon, user)
            if user % 2:
                order = shop.order(user, product)
                if user % 4 == 1:
                    shop.pay(user, order)

        with shop.customers(customer, 3):
            page.until(lambda: page.campaign(coupon, "pace"), "the sale is under way")
            for language, theme in (("en", "light"), ("ko", "dark")):
                page.size(DESKTOP)
                page.choose(language, theme)
                page.screenshot(f"desktop-{language}-{theme}", whole=True)
                page.size((390, 844))
                page.screenshot(f"phone-{language}-{theme}", whole=True)
                page.size(WALL)
                page.click("#wall")
                page.until(lambda: "wall" in page.find("html").get_attribute("class").split(), "it is on")
                page.screenshot(f"wall-{language}-{theme}")
                page.keys(Keys.ESCAPE)
                page.until(lambda: page.find("#wall").is_displayed(), "it is off")


class Restart(Dashboard):
    def test_a_restart_of_the_service_is_survived(self):
        page = self.page
        self.expected_errors += [r"ERR_CONNECTION_REFUSED", r"ERR_INCOMPLETE_CHUNKED_ENCODING", r"ERR_CONNECTION_RESET", r"ERR_EMPTY_RESPONSE", r"status of 503"]
        coupon = shop.campaign("STEADY", 20)
        shop.rush(coupon, shop.users(3))
        page.until_equal(17, lambda: page.left(coupon))
        shop.stop()
        page.until(lambda: re.search(r"Connection lost \d", page.text("#connection-text")), "it says that it is lost, and since when")
        page.until_equal("lost", page.level)
        self.assertIn("is-stale", page.find("body").get_attribute("class"))
        page.screenshot("connection-lost")
        shop.start()
        # The page reconnects in the same session.
        page.live()
        page.until(lambda: "is-stale" not in page.find("body").get_attribute("class"), "the numbers are fresh")
        page.until_equal(17, lambda: page.left(coupon))
        shop.rush(coupon, shop.users(2))
        page.until_equal(15, lambda: page.left(coupon))


if __name__ == "__main__":
    unittest.main()
