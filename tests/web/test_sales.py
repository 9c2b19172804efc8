"""Sales in a real browser: planning one, the plan as a timeline, the page of a product, and refunds by line."""

import re
import unittest

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import accessible
import test_dashboard as base
from browser import DESKTOP, PHONE
from shop import in_hours
from test_dashboard import Dashboard

# A day and an hour of the shop, as the page shows them.
SHOWN_TIME = r"\d{1,2} \w{3,4}, \d\d:\d\d"


def setUpModule():
    base.setUpModule()


def limited(name, group, limit, stock=40, price=129_000, **more):
    body = {"productName": name, "price": price, "stockQuantity": stock, "category": "SHOES", "limitPerUser": limit, **more}
    return base.shop.admin("POST", "/products", body | ({"limitGroup": group} if group else {}))["productId"]


class Sales(Dashboard):
    """Reads and fills in what all these tests have in common."""

    def row(self, title):
        """The row of the plan with this title; None without it."""
        rows = self.page.all(".sale-row")
        return next((row for row in rows if row.find_element(By.CSS_SELECTOR, "[data-part=title]").text == title), None)

    def open_plan_form(self):
        self.page.click("#sales")
        self.page.click("dialog[open] [data-part=plan]")
        self.page.until(lambda: self.page.all("form.plan"), "the form is open")

    def choose(self, *products):
        """Chooses products by their numbers."""
        field = self.page.find(".adding input")
        field.send_keys(", ".join(map(str, products)), Keys.ENTER)
        self.page.until(lambda: len(self.page.all(".chosen li")) == len(products), "they are chosen")

    def press_submit(self):
        self.page.dialog().find_element(By.CSS_SELECTOR, "[type=submit]").click()

    def error_at(self, name):
        field = self.page.dialog().find_element(By.NAME, name)
        return base.driver.execute_script("return document.getElementById(`${arguments[0].id}-error`).textContent", field)

    def accessible(self, what):
        with self.subTest(what):
            self.assertEqual(accessible.nameless(base.driver), [])
            self.assertEqual(base.driver.execute_script(accessible.STRUCTURE), [])
            self.assertEqual(base.driver.execute_script(accessible.CONTRAST), [])
            self.assertEqual(base.driver.execute_script(accessible.WIDE), [])
            for dialog in self.page.all("dialog[open]"):
                wide = base.driver.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", dialog)
                self.assertLessEqual(wide[0], wide[1])


class Planning(Sales):
    def test_a_sale_is_planned_in_one_go(self):
        page = self.page
        opens, closes = in_hours(30)[:14] + "00:00", in_hours(54)[:14] + "00:00"
        self.open_plan_form()
        page.fill(opensAt=opens, closesAt=closes, limitPerUser="1", limitGroup="AIR-26")
        page.click("[name=making]")
        page.fill(productName="Air runner", price="129000", category="SHOES", sizes="250, 260, 270: 5", units="40")
        page.click("[name=giving]")
        page.fill(couponCode="AIR-3000", totalQuantity="5000", discountType="FIXED", discountAmount="3000", minOrderPrice="30000")
        base.driver.execute_script("document.querySelector('[name=closesAt]').dispatchEvent(new Event('change', { bubbles: true }))")
        summary = page.text("[data-part=summary]")
        for part in ("3 products", opens.replace("T", " "), "1 per person in all of AIR-26", "coupon AIR-3000, 5,000 of them, ₩3,000 off, from ₩30,000"):
            self.assertIn(part, summary)
        self.accessible("the form")
        page.screenshot("plan-form")
        page.submit()
        page.until(lambda: "The sale is planned: 4 steps" in page.text("#announce"), "it says so")

        row = page.until(lambda: self.row("AIR-26"), "the group is in the plan")
        self.assertEqual(row.get_attribute("data-state"), "SCHEDULED")
        self.assertIn("3 products · 1 per person in all of AIR-26", row.text)
        self.assertIn("0 of 85 taken", row.text)
        self.assertRegex(row.text, rf"{SHOWN_TIME} to {SHOWN_TIME}")
        sizes = row.find_elements(By.CSS_SELECTOR, ".sizes a")
        self.assertEqual([size.text for size in sizes], ["250 40 left", "260 40 left", "270 5 left"])
        gift = page.until(lambda: self.row("AIR-3000"), "the coupon is in the plan")
        self.assertIn("₩3,000 off · from ₩30,000 · 3 products", gift.text)

        products = [int(size.get_attribute("href").rsplit("-", 1)[1]) for size in sizes]
        for product in products:
            shown = base.shop.admin("GET", f"/products/{product}")
            terms = (shown["opensAt"], shown["closesAt"], shown["limitPerUser"], shown["limitGroup"], shown["saleStatus"])
            self.assertEqual(terms, (opens, closes, 1, "AIR-26", "SCHEDULED"))
        plan = base.shop.admin("GET", "/sales")
        (coupon,) = (campaign for campaign in plan["campaigns"] if campaign["couponCode"] == "AIR-3000")
        self.assertEqual((coupon["opensAt"], coupon["closesAt"], coupon["productIds"], coupon["minOrderPrice"]), (opens, closes, products, 30_000))
        self.assertGreater(coupon["expiredAt"], closes)
        (user,) = base.shop.users(1, balance=1_000_000)
        lines = {"userId": user, "orderProducts": [{"productId": products[0], "quantity": 1}]}
        self.assertEqual(base.shop.status("POST", "/api/v1/orders", lines)[1]["errorCode"], "NOT_ON_SALE")

    def test_terms_of_chosen_products_are_replaced(self):
        page = self.page
        by_number, from_list = limited("Chosen by number", None, 7), base.shop.product("Chosen from the list", 1_000, 3)
        self.open_plan_form()
        page.fill(limitPerUser="2", limitGroup="CHOSEN")
        self.choose(by_number)
        page.click(".plan .folded summary")
        # The newest products are on the last page.
        label = "//label[contains(., 'Chosen from the list')]"
        page.until(lambda: base.driver.find_elements(By.XPATH, label), "the list is there")
        box = base.driver.find_element(By.XPATH, f"{label}//input")
        base.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        box.click()
        page.until(lambda: len(page.all(".chosen li")) == 2, "both are chosen")
        self.accessible("the list")
        page.submit()
        for product in (by_number, from_list):
            shown = base.shop.admin("GET", f"/products/{product}")
            self.assertEqual((shown["limitPerUser"], shown["limitGroup"], shown["opensAt"]), (2, "CHOSEN", None))

    def test_errors_stand_at_their_fields(self):
        page = self.page
        product = base.shop.product("Errors", 1_000, 3)
        self.open_plan_form()
        early, late = in_hours(5), in_hours(6)
        for values, name, text in (
            ({"opensAt": late, "closesAt": early}, "closesAt", "It has to begin before it ends."),
            ({"opensAt": early, "closesAt": late, "limitGroup": "G"}, "limitPerUser", "A group takes a number of units per person."),
        ):
            page.fill(**values)
            self.press_submit()
            page.until_equal(text, lambda: self.error_at(name))
            field = page.dialog().find_element(By.NAME, name)
            self.assertEqual((field.get_attribute("aria-invalid"), field), ("true", base.driver.switch_to.active_element))
        page.fill(limitPerUser="1")
        self.press_submit()
        page.until(lambda: "Choose a product, or create one." in page.text("dialog[open] form.plan"), "it says that none is chosen")
        page.find(".adding input").send_keys("0x", Keys.ENTER)
        page.until(lambda: "Numbers of products like 12, 14-18" in page.text("dialog[open] form.plan"), "it says how to write them")
        page.find(".adding input").clear()
        self.expected_errors.append(r"/admin/v1/products/9007199254740991 - Failed to load resource: .*\b404\b")
        page.find(".adding input").send_keys("9007199254740991", Keys.ENTER)
        page.until(lambda: "There is no such product." in page.text("dialog[open] form.plan"), "it says so")
        page.find(".adding input").clear()
        self.choose(product)
        page.click("[name=giving]")
        page.fill(couponCode="BAD", totalQuantity="5", discountType="PERCENTAGE", discountAmount="101")
        self.press_submit()
        page.until_equal("A percentage is at most 100.", lambda: self.error_at("discountAmount"))
        page.fill(discountAmount="10", scope="categories", categories="shoes")
        self.press_submit()
        page.until_equal("Categories like SHOES, TOP; at most 20.", lambda: self.error_at("categories"))
        page.fill(categories="SHOES", expiredAt=in_hours(-1))
        self.press_submit()
        page.until_equal("The coupons would have expired already.", lambda: self.error_at("expiredAt"))
        page.fill(expiredAt=in_hours(7), couponClosesAt=in_hours(8))
        self.press_submit()
        page.until_equal("It would close after the coupons expire.", lambda: self.error_at("couponClosesAt"))
        self.assertEqual(base.shop.admin("GET", f"/products/{product}")["limitPerUser"], None)

    def test_a_refused_plan_goes_on_from_there(self):
        page = self.page
        limited("Of another limit", "TAKEN", 5)
        stays = base.shop.product("Stays", 1_000, 3)
        self.expected_errors.append(rf"/admin/v1/products(/{stays})? - Failed to load resource: .*\b400\b")
        self.open_plan_form()
        page.fill(limitPerUser="2", limitGroup="TAKEN")
        self.choose(stays)
        page.click("[name=making]")
        page.fill(productName="Goes on", price="1000", sizes="S, M", units="3")
        self.press_submit()
        page.until(lambda: "another number of units per person" in self.error_at("limitPerUser"), "the reason is at the field")
        self.assertEqual(page.each(".plan-steps li", lambda step: step.get_attribute("data-step")), ["failed", "waiting", "waiting"])
        page.screenshot("plan-refused")
        # The second size fails for another reason, after the first one is created.
        page.fill(limitGroup="FREE-GROUP", sizes="S, M: 9999999999")
        self.press_submit()
        page.until_equal("Sizes like 250, 260, 270: 40, each once.", lambda: self.error_at("sizes"))
        page.fill(sizes="S, M", productName="Goes on")
        page.submit()
        listed = [it for it in base.shop.admin("GET", "/sales")["products"] if it["productName"].startswith("Goes on")]
        self.assertEqual(sorted((it["productName"], it["limitGroup"]) for it in listed), [("Goes on M", "FREE-GROUP"), ("Goes on S", "FREE-GROUP")])

    def test_a_campaign_has_conditions(self):
        page = self.page
        page.click("#new-campaign")
        page.fill(couponCode="CONDITIONS", discountType="PERCENTAGE", discountAmount="15", totalQuantity="40", expiredAt=in_hours(48)[:16])
        page.click("dialog[open] .folded summary")
        page.fill(minOrderPrice="30000", maxDiscountPrice="5000", productIds="1-3, 9", categories="SHOES TOP")
        self.accessible("the form of a campaign")
        page.submit()
        coupon = int(page.until(lambda: re.search(r"CONDITIONS is there \(number (\d+)\)", page.text("#announce")), "it says so").group(1))
        shown = base.shop.admin("GET", f"/coupons/{coupon}")
        conditions = [shown[name] for name in ("minOrderPrice", "maxDiscountPrice", "productIds", "categories")]
        self.assertEqual(conditions, [30_000, 5_000, [1, 2, 3, 9], ["SHOES", "TOP"]])
        page.until(lambda: "15% off · from ₩30,000 · at most ₩5,000 · 4 products · SHOES, TOP · closes" in page.campaign(coupon, "terms"), "the panel has them")

        page.click("#new-campaign")
        page.fill(couponCode="CAP", discountAmount="500", totalQuantity="4")
        page.click("dialog[open] .folded summary")
        page.fill(maxDiscountPrice="100")
        page.click("dialog[open] .folded summary")
        self.press_submit()
        page.until_equal("Only a percentage takes a cap.", lambda: self.error_at("maxDiscountPrice"))
        self.assertTrue(page.dialog().find_element(By.NAME, "maxDiscountPrice").is_displayed())

    def test_a_product_is_made_with_a_window_and_a_limit(self):
        page = self.page
        page.click("#new-product")
        page.fill(productName="Windowed", price="59000", stockQuantity="12", category="SHOES")
        page.click("dialog[open] .folded summary")
        opens = in_hours(3)
        page.fill(opensAt=opens, limitPerUser="2")
        page.submit()
        product = int(page.until(lambda: re.search(r"Windowed is there \(number (\d+)\)", page.text("#announce")), "it says so").group(1))
        shown = base.shop.admin("GET", f"/products/{product}")
        self.assertEqual((shown["opensAt"], shown["closesAt"], shown["limitPerUser"], shown["limitGroup"]), (opens, None, 2, None))


class Timeline(Sales):
    def test_each_state_is_shown_in_both_languages_and_widths(self):
        page = self.page
        for size in (250, 260):
            # Tomorrow, whatever the time of the day is.
            limited(f"Later {size}", "LATER-SHOES", 1, opensAt=in_hours(24), closesAt=in_hours(48))
        limited("Now", None, 3, opensAt=in_hours(-20), closesAt=in_hours(30), stock=4)
        limited("Empty", None, 3, opensAt=in_hours(-2), stock=0)
        limited("Over", None, 1, opensAt=in_hours(-20), closesAt=in_hours(-2))
        limited("Always", None, 10)
        limited("Next month", None, 1, opensAt=in_hours(24 * 35))
        page.click("#sales")
        states = {"LATER-SHOES": "SCHEDULED", "Now": "ON_SALE", "Empty": "SOLD_OUT", "Over": "ENDED", "Always": "ON_SALE"}
        page.until_equal(states, lambda: {title: row.get_attribute("data-state") for title in states if (row := self.row(title))})
        self.assertIsNone(self.row("Next month"))
        (buyer,) = base.shop.users(1, balance=1_000_000)
        product = next(it["productId"] for it in base.shop.admin("GET", "/sales")["products"] if it["productName"] == "Now")
        base.shop.order(buyer, product, 3)
        # The plan follows the sale.
        page.until(lambda: "3 of 4 taken" in self.row("Now").text, "the units are counted")
        order = [title for title in page.each(".sale-row [data-part=title]", lambda title: title.text) if title in states]
        self.assertEqual(order, ["Over", "Now", "Empty", "LATER-SHOES", "Always"])

        # A bar lies where the now line says that it does.
        bar = lambda title: self.row(title).find_element(By.CSS_SELECTOR, "[data-part=bar]").rect
        now = page.find(".now").rect["x"]
        self.assertLess(bar("Over")["x"] + bar("Over")["width"], now)
        self.assertTrue(bar("Now")["x"] < now < bar("Now")["x"] + bar("Now")["width"])
        self.assertGreater(bar("LATER-SHOES")["x"], now)

        base.driver.execute_script("document.querySelector('[data-range=month]').click()")
        page.until(lambda: len(page.all(".tick")) == 6, "a month has six ticks")
        page.click("dialog[open] [aria-label=Later]")
        page.until(lambda: self.row("Next month"), "the next month has it")
        base.driver.execute_script("document.querySelector('[data-range=day]').click()")
        page.until(lambda: self.row("LATER-SHOES") is None and self.row("Now"), "a day has what is on sale then")
        self.assertEqual(page.each(".tick", lambda tick: tick.get_attribute("textContent"))[:2], ["00:00", "03:00"])
        base.driver.execute_script("document.querySelector('[data-range=week]').click()")
        page.close_dialogs()

        for language, theme in (("en", "light"), ("ko", "dark")):
            page.size(DESKTOP)
            page.choose(language=language, theme=theme)
            for width, size in (("desktop", DESKTOP), ("phone", (390, 844))):
                page.size(size)
                base.driver.execute_script("document.getElementById('sales').click()")
                page.until(lambda: self.row("LATER-SHOES"), "the plan is there")
                self.accessible(f"the plan on a {width} in {language}")
                page.screenshot(f"sales-{width}-{language}-{theme}")
                base.driver.execute_script("document.querySelector('dialog[open] [data-part=plan]').click()")
                base.driver.execute_script("for (const name of ['making', 'giving']) document.querySelector(`[name=${name}]`).click()")
                self.accessible(f"the form on a {width} in {language}")
                page.screenshot(f"plan-{width}-{language}-{theme}")
                page.close_dialogs()

    def test_the_plan_is_used_with_the_keyboard_and_has_an_address(self):
        page = self.page
        product = limited("By keyboard", None, 1, opensAt=in_hours(1))
        base.driver.execute_script("document.getElementById('sales').focus()")
        page.keys(Keys.ENTER)
        page.until(lambda: self.row("By keyboard"), "the plan is there")
        self.assertTrue(base.driver.current_url.endswith("#sales"))
        for _ in range(200):
            if page.tab().get_attribute("href") == f"{page.base}/ops#product-{product}":
                break
            self.assertNotEqual(base.driver.switch_to.active_element.value_of_css_property("outline-style"), "none")
        page.keys(Keys.ENTER)
        page.until(lambda: page.dialog().accessible_name == "By keyboard", "the product's page is open")
        self.assertTrue(base.driver.current_url.endswith(f"#product-{product}"))
        page.keys(Keys.ESCAPE)
        page.until(lambda: base.driver.current_url.endswith("#sales"), "the plan is back")
        page.keys(Keys.ESCAPE)
        page.until(lambda: not page.all("dialog[open]"), "it is closed")
        self.assertEqual((base.driver.current_url, base.driver.switch_to.active_element.get_attribute("id")), (f"{page.base}/ops", "sales"))
        page.open("/ops#sales")
        base.driver.refresh()
        page.until(lambda: self.row("By keyboard"), "the address opens the plan")


class Product(Sales):
    def units(self):
        return {row.get_attribute("data-units"): self.page.number(f"[data-units={row.get_attribute('data-units')}] b") for row in self.page.all("[data-units]")}

    def test_the_page_of_a_product_follows_its_sale(self):
        page = self.page
        size, other = limited("Runner 250", "RUNNER", 3, stock=90), limited("Runner 260", "RUNNER", 3)
        buyers = base.shop.users(25, balance=10_000_000)
        for place, user in enumerate(buyers):
            order = base.shop.order(user, size, 1 + place % 3)
            if place % 2:
                base.shop.pay(user, order)
        base.shop.order(buyers[0], other, 2)
        page.open(f"/ops#product-{size}")
        base.driver.refresh()
        page.until(lambda: page.dialog().accessible_name == "Runner 250", "the page of the product is open")
        held = sum(1 + place % 3 for place in range(0, 25, 2))
        sold = sum(1 + place % 3 for place in range(1, 25, 2))
        page.until_equal({"on-sale": 90 - held - sold, "held": held, "sold": sold, "stocked": 90}, self.units)
        self.assertIn("3 per person in all of RUNNER", page.text(".product-page"))
        # Eight have three of this size; one has one of it and two of another.
        page.until(lambda: "9 of 25 buyers may not buy another one." in page.text("[data-part=at-limit]"), "those at the limit are counted")
        rows = page.each(".users tbody tr", lambda row: (row.get_attribute("data-user"), row.text))
        self.assertEqual((len(rows), rows[0][0]), (20, str(buyers[0])))
        self.assertIn("3 of 3 at the limit", rows[8][1])
        self.assertNotIn("at the limit", rows[9][1])
        page.click(".pager .action:last-child")
        page.until(lambda: len(page.all(".users tbody tr")) == 5, "the rest is on the next page")
        page.click(".pager .action:nth-child(2)")
        page.until(lambda: len(page.all(".users tbody tr")) == 20, "the first page again")

        # It is changed in place.
        page.click(".product-head .action")
        page.fill(stockDelta="10")
        base.driver.execute_script("document.querySelectorAll('dialog[open] .folded').forEach((part) => { part.open = true; })")
        closes = in_hours(5)
        page.fill(closesAt=closes, price="99000")
        page.submit()
        page.until_equal(100, lambda: self.units()["stocked"])
        self.assertIn("₩99,000", page.text(".product-page"))
        self.assertIn(closes.replace("T", " "), page.text(".product-page"))
        # The page follows without a click.
        base.shop.cancel(buyers[0], {"orderId": base.shop.admin("GET", f"/orders?userId={buyers[0]}")["content"][-1]["orderId"]})
        page.until_equal(held - 1, lambda: self.units()["held"])

        # A refusal of the service is at its field.
        self.expected_errors.append(rf"/admin/v1/products/{size} - Failed to load resource: .*\b400\b")
        page.click(".product-head .action")
        page.click("dialog[open] .folded summary")
        page.fill(limitPerUser="2")
        self.press_submit()
        page.until(lambda: "another number of units per person" in self.error_at("limitPerUser"), "it says why")
        page.fill(limitPerUser="", limitGroup="")
        page.submit()
        page.until(lambda: "There is no limit now." in page.text("[data-part=at-limit]"), "the limit is gone")
        shown = base.shop.admin("GET", f"/products/{size}")
        self.assertEqual((shown["limitPerUser"], shown["limitGroup"], shown["closesAt"]), (None, None, closes))

        # A buyer leads to the timeline.
        page.close_dialogs()
        base.driver.execute_script(f"location.hash = '#product-{other}'")
        page.click(".users tbody button")
        page.until(lambda: page.text(".timeline-result h3") == f"User {buyers[0]}" or "User" in page.text(".timeline-result h3"), "the buyer is found")
        page.close_dialogs()

        for language, theme in (("en", "light"), ("ko", "dark")):
            page.size(DESKTOP)
            page.choose(language=language, theme=theme)
            for width, dimensions in (("desktop", DESKTOP), ("phone", (390, 844)), ("narrow", PHONE)):
                page.size(dimensions)
                base.driver.execute_script("location.hash = ''")
                base.driver.execute_script(f"location.hash = '#product-{other}'")
                page.until(lambda: page.all(".users tbody tr"), "the buyers are listed")
                self.accessible(f"the product on a {width} in {language}")
                page.screenshot(f"product-{width}-{language}-{theme}")
                page.close_dialogs()

    def test_an_unknown_product_says_so(self):
        self.expected_errors.append(r"/admin/v1/products/9007199254740991(/buyers\S*)? - Failed to load resource: .*\b404\b")
        self.page.open("/ops#product-9007199254740991")
        base.driver.refresh()
        self.page.until(lambda: self.page.text("dialog[open] .error") == "There is no such product.", "it says so")


class Refunding(Sales):
    def order(self, lines, coupon=False):
        """A paid order of `(product, quantity)` lines. Returns it with its user."""
        (user,) = base.shop.users(1, balance=10_000_000)
        body = {"userId": user, "payment": {"paymentType": "BALANCE"}, "orderProducts": [{"productId": product, "quantity": units} for product, units in lines]}
        if coupon:
            gift = base.shop.campaign("REFUND-1000", 5)
            self.assertEqual(base.shop.take(gift, user)[0], 200)
            body["userCouponId"] = gift
        status, order = base.shop.status("POST", "/api/v1/orders", body)
        self.assertEqual((status, order.get("orderStatus")), (200, "PAID"))
        return order | {"userId": user}

    def find(self, order):
        page = self.page
        page.click("#find")
        page.find("#timeline-id").send_keys(str(order["orderId"]), Keys.ENTER)
        page.until(lambda: page.text(".timeline-result h3") == f"Order {order['orderId']}", "the order is found")

    def amount(self):
        return self.page.text("dialog[open] [data-part=amount]")

    def refund(self):
        """Submits the form, and answers yes."""
        page = self.page
        self.press_submit()
        page.until(lambda: page.all("dialog[role=alertdialog]"), "it asks first")
        question = page.dialog().text
        page.submit()
        return question

    def test_an_order_is_refunded_by_line(self):
        page = self.page
        shoes, socks = base.shop.product("Refunded shoe", 10_001, 10), base.shop.product("Refunded socks", 333, 10)
        order = self.order([(shoes, 3), (socks, 2)], coupon=True)
        paid, total = order["finalPrice"], 30_669
        self.find(order)
        page.click("dialog[open] [data-part=refund]")
        page.until(lambda: "Refunded shoe" in page.text("dialog[open] .refund"), "the products have their names")
        self.assertEqual(self.amount(), "Choose what comes back.")
        # Without a line nothing is sent.
        self.press_submit()
        page.until_equal("Choose what comes back.", lambda: page.text("dialog[open] .refund .error"))
        page.click("dialog[open] .refund-lines li:first-child input[type=checkbox]")
        units = page.find("dialog[open] .refund-lines li:first-child input[type=number]")
        units.clear()
        units.send_keys("1")
        first = paid * 10_001 // total
        page.until_equal(f"₩{first:,} back · ₩{paid:,} was paid, ₩0 refunded before", self.amount)
        page.click("dialog[open] [name=restock]")
        page.find("dialog[open] [name=reason]").send_keys("worn")
        self.accessible("the form")
        page.screenshot("refund-form")
        self.assertIn("keep them off sale", self.refund())
        page.until_equal(f"₩{first:,} of order {order['orderId']} was refunded.", lambda: page.text(".refunded"))
        shown = base.shop.admin("GET", f"/orders/{order['orderId']}/timeline")
        self.assertEqual((shown["order"]["refundedPrice"], shown["order"]["orderStatus"]), (first, "PAID"))
        (part,) = shown["refunds"]
        self.assertEqual((part["reason"], part["restock"], part["products"]), ("worn", False, [{"productId": shoes, "quantity": 1}]))
        units = base.shop.admin("GET", f"/products/{shoes}")
        self.assertEqual((units["stockQuantity"], units["soldQuantity"], units["quarantinedQuantity"]), (7, 2, 1))
        for part in ("worn", "refunded in part", "Refunded parts"):
            page.until(lambda: part in page.text(".timeline-result"), "the timeline tells of it")
        self.accessible("the timeline")
        page.screenshot("refund-timeline")

        # The rest comes back on sale, and closes the order.
        page.click("dialog[open] [data-part=refund]")
        page.until(lambda: len(page.all("dialog[open] .refund-lines li")) == 2, "both lines have something left")
        for line in page.all("dialog[open] .refund-lines input[type=checkbox]"):
            line.click()
        page.until_equal(f"₩{paid - first:,} back · ₩{paid:,} was paid, ₩{first:,} refunded before", self.amount)
        self.assertIn("put them back on sale", self.refund())
        page.until_equal(f"₩{paid - first:,} of order {order['orderId']} was refunded.", lambda: page.text(".refunded"))
        self.assertFalse(page.all("dialog[open] [data-part=refund]"))
        shown = base.shop.admin("GET", f"/orders/{order['orderId']}/timeline")["order"]
        self.assertEqual((shown["orderStatus"], shown["closeReason"], shown["refundedPrice"]), ("CANCELLED", "REFUNDED", paid))
        balance = base.shop.status("GET", f"/api/v1/balances/{order['userId']}")[1]["balance"]
        self.assertEqual(balance, 10_000_000)
        page.close_dialogs()
        base.driver.execute_script(f"location.hash = '#product-{shoes}'")
        page.until(lambda: self.page.number("[data-units=quarantined] b") == 1, "the page of the product has the unit that is off sale")
        page.screenshot("product-off-sale")

    def test_a_refund_that_is_refused_says_why(self):
        page = self.page
        product = base.shop.product("Refused refund", 1_000, 10)
        order = self.order([(product, 2)])
        self.find(order)
        page.click("dialog[open] [data-part=refund]")
        page.click("dialog[open] .refund-lines input[type=checkbox]")
        # Meanwhile its user sends one back.
        part = {"userId": order["userId"], "lines": [{"productId": product, "quantity": 1}]}
        self.assertEqual(base.shop.status("POST", f"/api/v1/orders/{order['orderId']}/cancel", part)[0], 200)
        self.expected_errors.append(rf"/admin/v1/orders/{order['orderId']}/refund - Failed to load resource: .*\b400\b")
        self.press_submit()
        page.until(lambda: page.all("dialog[role=alertdialog]"), "it asks first")
        page.submit()
        page.until(lambda: "That much can’t be refunded" in page.text("dialog[open] .refund"), "it says why")
        self.assertEqual(base.shop.admin("GET", f"/orders/{order['orderId']}/timeline")["order"]["refundedPrice"], 1_000)
        # On a phone, in Korean.
        page.close_dialogs()
        page.choose(language="ko", theme="dark")
        page.size((390, 844))
        base.driver.execute_script("document.getElementById('find').click()")
        page.find("#timeline-id").send_keys(str(order["orderId"]), Keys.ENTER)
        page.click("dialog[open] [data-part=refund]")
        page.click("dialog[open] .refund-lines input[type=checkbox]")
        self.accessible("the form on a phone")
        page.screenshot("refund-phone-ko-dark")

    def test_an_order_that_is_not_paid_has_no_refund(self):
        (user,) = base.shop.users(1, balance=100_000)
        order = base.shop.order(user, base.shop.product("Not paid", 1_000, 10))
        self.find(order)
        self.assertFalse(self.page.all("dialog[open] [data-part=refund]"))


if __name__ == "__main__":
    unittest.main()
