"""Pages beside the dashboard in a real browser: Swagger UI, and a storefront of another origin."""

import http.server
import os
import threading
import unittest
from pathlib import Path

from browser import DESKTOP, PHONE, Page, open_browser
from shop import TIMEOUT_S, Shop, number
from test_dashboard import SCRATCH

shop = None
driver = None


def setUpModule():
    global shop, driver
    shop = Shop(SCRATCH / "shop-of-pages")
    unittest.addModuleCleanup(shop.stop)
    shop.start()
    driver = open_browser(SCRATCH / "profile-of-pages")
    unittest.addModuleCleanup(driver.quit)
    driver.set_script_timeout(TIMEOUT_S)


class Blank(http.server.BaseHTTPRequestHandler):
    """An empty page of a storefront."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>shop</title>")

    def log_message(self, *_):
        pass


# Calls the API from a page. Returns what the page can read, or that the browser blocks the call.
CALL = """
    const [url, init, names] = arguments;
    const done = arguments[arguments.length - 1];
    fetch(url, init).then(async (answer) => done({
        status: answer.status, headers: Object.fromEntries(names.map((name) => [name, answer.headers.get(name)])), text: await answer.text(),
    }), (error) => done({ blocked: String(error) }));
"""


class AnotherOrigin(unittest.TestCase):
    """A page of a listed origin calls the API, also with headers of its libraries; a page of another origin is blocked."""

    @classmethod
    def setUpClass(cls):
        cls.servers = []
        for port in (shop.page_port, 0):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Blank)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            cls.servers.append(server)
            cls.addClassCleanup(server.server_close)
            cls.addClassCleanup(server.shutdown)

    def call(self, method, path, headers, body=None, names=()):
        init = {"method": method, "headers": headers, "body": body}
        return driver.execute_async_script(CALL, shop.base + path, init, list(names))

    def test_a_listed_origin_calls_with_what_tracing_adds(self):
        driver.get(shop.page_origin)
        (user,) = shop.users(1)
        tracing = {
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "tracestate": "a=b",
            "baggage": "sentry-release=1",
            "sentry-trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        }
        for more in (tracing, {"x-datadog-trace-id": "1", "b3": "0", "x-requested-with": "XMLHttpRequest"}):
            answer = self.call("PUT", f"/api/v1/balances/{user}", {
                "content-type": "application/json", "authorization": "Bearer x", "idempotency-key": "k", "x-request-id": "from-the-page", **more,
            }, '{"amount": 5, "note": "x"}', ["x-request-id", "idempotent-replayed", "x-unknown-fields"])
            self.assertEqual(answer.get("status"), 200, answer)
            self.assertEqual(answer["headers"]["x-request-id"], "from-the-page")
            self.assertEqual(answer["headers"]["x-unknown-fields"], "note")
        self.assertEqual(answer["headers"]["idempotent-replayed"], "true")

    def test_another_origin_and_the_operators_api_are_closed(self):
        driver.get(f"http://127.0.0.1:{self.servers[1].server_port}")
        self.assertIn("blocked", self.call("GET", "/api/v1/products", {}))
        driver.get(shop.page_origin)
        self.assertEqual(self.call("GET", "/api/v1/products", {}).get("status"), 200)
        self.assertIn("blocked", self.call("GET", "/admin/v1/projection", {"authorization": f"Bearer {shop.token}"}))


class SwaggerUi(unittest.TestCase):
    def test_try_it_out_calls_where_the_page_is_from(self):
        page = Page(driver, shop.base)
        page.size(DESKTOP)
        product = shop.product("Swagger", 1_000, 5)
        page.open("/swagger-ui/index.html")
        operation = ".opblock-get[id$='-product']"
        page.click(f"{operation} .opblock-summary-control")
        page.click(f"{operation} .try-out__btn")
        page.find(f"{operation} .parameters input").send_keys(str(product))
        page.click(f"{operation} .execute")
        page.until(lambda: page.text(f"{operation} .live-responses-table tbody .response-col_status").strip().startswith("200"), "it is answered")
        self.assertEqual(page.text(f"{operation} .request-url pre").strip(), f"{shop.base}/api/v1/products/{product}")
        tags = driver.execute_script("return [...document.querySelectorAll('.opblock-tag')].map((tag) => tag.dataset.tag)")
        self.assertEqual(tags[:5], ["결제", "잔액", "쿠폰", "상품", "주문"])
        self.assertEqual(len(tags), len(set(tags)))


class Instances(unittest.TestCase):
    """The dashboard with several instances."""

    def test_each_instance_is_shown_in_the_sum_and_alone(self):
        page = Page(driver, shop.base)
        page.size(DESKTOP)
        page.open()
        page.sign_in(shop.token)
        page.until(lambda: page.number("#vitals [data-part=requests] .figure") is not None, "requests are shown")
        self.assertFalse(page.find("#instances").is_displayed())
        other = shop.start_another()
        row = f"#instances [data-instance$=':{other}']"
        page.until(lambda: page.all(row) and page.find("#instances").is_displayed(), "the other one is shown")
        # Sends requests for an unknown order to the other instance.
        alone = Shop.__new__(Shop)
        alone.base = f"http://127.0.0.1:{other}"
        chart = lambda: page.find("#chart-requests").get_attribute("aria-label")
        at_most = lambda: number(chart().rsplit("최대", 1)[1] if "최대" in chart() else chart().rsplit("At most", 1)[1])
        the_other = f"#instance option[data-instance$=':{other}']"
        own = f"#instance option:not([value='']):not([data-instance$=':{other}'])"
        with shop.customers(lambda: alone.status("GET", "/api/v1/orders/9007199254740991"), 1):
            page.until(lambda: (page.number(f"{row} [data-part=rate]") or 0) > 0, "its requests are counted")
            page.until(lambda: "/api/v1/orders/{orderId}" in page.text("#by-route"), "and are among all")
            page.find(own).click()
            page.until(lambda: "/api/v1/orders/{orderId}" not in page.text("#by-route"), "this one has none of them")
            page.until(lambda: "ORDER_NOT_FOUND" not in page.text("#refusals"), "nor its refusals")
            page.find(the_other).click()
            page.until(lambda: "/api/v1/orders/{orderId}" in page.text("#by-route"), "they are the other's")
            page.until(lambda: "ORDER_NOT_FOUND" in page.text("#refusals"), "so are its refusals")
            # Its past is in Redis: two slots at least.
            page.until(lambda: len(self.past(other)) >= 2, "its requests are known to others")
            page.screenshot("instances", whole=True)
            page.size(DESKTOP)
        shop.kill_others()
        page.until(lambda: not page.find("#instances").is_displayed(), "a dead one drops out")
        page.until(lambda: page.text("#instance-ended") != "", "but its past stays on the page")
        self.assertEqual(page.text("#by-route tbody"), "")
        # A page that opens now has it, too.
        driver.switch_to.new_window("tab")
        try:
            page.size(DESKTOP)
            page.open()
            page.live()
            page.until(lambda: page.find("#chart-requests canvas").is_displayed(), "there is a chart")
            self.assertGreater(at_most(), 0.5, chart())
            self.assertEqual(page.find("#instance").get_attribute("value"), "")
            page.find(the_other).click()
            page.until(lambda: page.text("#instance-ended") != "", "the dead one can be chosen")
            self.assertGreater(at_most(), 0.5, chart())
            self.assertEqual(set(page.each("#traffic .legend b", lambda value: value.text)), {"–"})
            page.find("#traffic").screenshot(str(Path(os.environ["TEST_WEB_SHOTS"], "instance-ended.png")))
            page.find(own).click()
            page.until(lambda: page.text("#instance-ended") == "", "this one runs")
            page.find("#instance option[value='']").click()
            for language in ("en", "ko"):
                page.choose(language=language)
                page.screenshot(f"history-{language}", whole=True)
                page.size(DESKTOP)
            # The past is another program's text: the page says so, and goes on.
            shop.redis("SET", "{p0}:requests", "of another program")
            driver.refresh()
            page.live()
            page.until(lambda: page.text("#history-unknown") != "", "the past is unknown")
            page.until(lambda: page.level() == "ok", "the shop sells")
            page.find("#traffic").screenshot(str(Path(os.environ["TEST_WEB_SHOTS"], "history-unknown.png")))
            shop.redis("DEL", "{p0}:requests")
            page.until(lambda: page.text("#history-unknown") == "", "it is known again")
            page.size(PHONE)
            self.assertEqual(driver.execute_script("return document.documentElement.scrollWidth"), PHONE[0])
            page.screenshot("history-phone", whole=True)
        finally:
            driver.close()
            driver.switch_to.window(driver.window_handles[0])

    def past(self, port):
        """The slots with requests of the instance at a port."""
        return driver.execute_async_script("""
            const [port] = arguments;
            const done = arguments[arguments.length - 1];
            const read = async (query) => (await fetch(`/admin/v1/requests${query}`, { headers: { 'x-firstcome-ops': '1' } })).json();
            read('').then(async ({ instances }) => {
                const id = instances.find(({ name }) => name.endsWith(`:${port}`))?.instanceId;
                done(id ? (await read(`?instanceId=${id}`)).slots.filter(({ perSecond }) => perSecond > 0) : []);
            }, () => done([]));
        """, port)


if __name__ == "__main__":
    unittest.main()
