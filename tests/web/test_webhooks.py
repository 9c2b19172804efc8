"""Webhooks in a real browser: creating one, its deliveries, its failures, and sending again."""

import http.server
import threading

import test_dashboard as base
from browser import DESKTOP, PHONE
from test_sales import Sales


def setUpModule():
    base.setUpModule()


class Receiver(http.server.ThreadingHTTPServer):
    """Answers every webhook with `status`, and keeps the ids."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.status = 204
        self.ids = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.ids.append(self.headers["webhook-id"])
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Webhooks(Sales):
    def setUp(self):
        super().setUp()
        self.receiver = Receiver()
        self.addCleanup(self.receiver.server_close)
        self.addCleanup(self.receiver.shutdown)
        self.addCleanup(self.delete_all)

    def delete_all(self):
        # The page must not ask for a webhook that is gone.
        self.page.open("/ops/assets/icon.svg")
        for webhook in base.shop.admin("GET", "/webhooks")["content"]:
            base.shop.admin("DELETE", f"/webhooks/{webhook['webhookId']}")

    def create(self):
        body = {"url": self.receiver.url, "types": ["balance.charged"], "description": "ERP"}
        return base.shop.admin("POST", "/webhooks", body)["webhookId"]

    def charge(self, user):
        self.assertEqual(base.shop.status("PUT", f"/api/v1/balances/{user}", {"amount": 1})[0], 200)

    def open_deliveries(self, webhook):
        self.page.click("#webhooks")
        self.page.click(f"[data-webhook='{webhook}'] .action")
        self.page.until(lambda: self.page.all(".deliveries tbody tr"), "the attempts are there")

    def test_a_webhook_is_created_and_its_secret_is_shown_once(self):
        page = self.page
        page.click("#webhooks")
        page.until(lambda: "There is no webhook." in page.dialog().text, "there is none")
        page.dialog().find_element("css selector", ".buttons .action").click()
        page.fill(url=self.receiver.url, types="order.paid, order.closed", description="ERP")
        self.accessible("the form")
        page.dialog().find_element("css selector", "[type=submit]").click()
        page.until(lambda: page.all("#webhook-secret"), "the secret is shown")
        secret = page.find("#webhook-secret").get_attribute("value")
        self.assertRegex(secret, r"^whsec_[A-Za-z0-9+/]{43}=$")
        self.accessible("the secret")
        page.screenshot("webhook-secret")
        page.close_dialogs()
        page.click("#webhooks")
        page.until(lambda: page.all("[data-webhook]"), "it is in the list")
        text = page.dialog().text
        for part in (self.receiver.url, "Sending", "ERP", "order.closed, order.paid"):
            self.assertIn(part, text)
        self.assertNotIn("whsec_", text)

    def test_failures_are_shown_and_sent_again(self):
        page = self.page
        (user,) = base.shop.users(1)
        webhook = self.create()
        self.charge(user)
        page.until(lambda: len(self.receiver.ids) == 1, "it arrives")
        self.receiver.status = 500
        self.charge(user)
        page.until(lambda: len(self.receiver.ids) >= 2, "it fails")
        page.click("#webhooks")
        page.until(lambda: "one event to send again" in page.text("[data-webhook]"), "the list says so")
        self.accessible("the list")
        page.screenshot("webhooks")
        page.close_dialogs()
        self.open_deliveries(webhook)
        page.until(lambda: "Rejected (500)" in page.dialog().text and "Delivered (204)" in page.dialog().text, "both are there")
        self.accessible("the deliveries")
        page.screenshot("webhook-deliveries")
        page.click("#webhook-failed")
        page.until(lambda: "Delivered" not in page.text(".deliveries tbody"), "only failures")
        self.receiver.status = 204
        sent = len(self.receiver.ids)
        failed = self.receiver.ids[1]
        page.click(".deliveries tbody .link")
        page.until(lambda: failed in self.receiver.ids[sent:], "it is sent again")
        page.until(lambda: f"Event {failed} is sent again." in page.text("#announce"), "the page says so")

    def test_webhooks_fit_a_phone_in_both_languages(self):
        page = self.page
        (user,) = base.shop.users(1)
        webhook = self.create()
        self.charge(user)
        page.until(lambda: self.receiver.ids, "it arrives")
        self.addCleanup(page.size, DESKTOP)
        page.size(PHONE)
        page.click("#menu")
        for language, name in (("ko", "webhooks-phone-ko"), ("en", "webhooks-phone-en")):
            page.choose(language=language)
            self.open_deliveries(webhook)
            self.accessible(f"a phone, {language}")
            wide = base.driver.execute_script("const it = document.querySelector('.deliveries').parentElement; return [it.scrollWidth, it.clientWidth]")
            self.assertLessEqual(wide[0], wide[1], "sending again needs no scrolling")
            page.screenshot(name)
            page.close_dialogs()
