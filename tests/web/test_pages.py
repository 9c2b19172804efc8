"""Pages beside the dashboard in a real browser: Swagger UI, and a storefront of another origin."""

import http.server
import threading
import unittest

from browser import DESKTOP, Page, open_browser
from shop import TIMEOUT_S, Shop
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
        with shop.customers(lambda: alone.status("GET", "/api/v1/orders/9007199254740991"), 1):
            page.until(lambda: (page.number(f"{row} [data-part=rate]") or 0) > 0, "its requests are counted")
            page.until(lambda: "/api/v1/orders/{orderId}" in page.text("#by-route"), "and are among all")
            own = f"#instance option:not([value='']):not([value*=':{other} '])"
            page.find(own).click()
            page.until(lambda: "/api/v1/orders/{orderId}" not in page.text("#by-route"), "this one has none of them")
            page.find(f"#instance option[value*=':{other} ']").click()
            page.until(lambda: "/api/v1/orders/{orderId}" in page.text("#by-route"), "they are the other's")
            page.screenshot("instances", whole=True)
        shop.kill_others()
        page.until(lambda: not page.find("#instances").is_displayed(), "a dead one drops out")
        self.assertEqual(page.find("#instance").get_attribute("value"), "")


if __name__ == "__main__":
    unittest.main()
