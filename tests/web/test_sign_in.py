"""Operators' roles, and their sign-in with the company's account at a real identity provider, in a real browser."""

import os
import secrets
import shutil
import subprocess
import unittest
import urllib.parse

from selenium.webdriver.common.keys import Keys

from browser import DESKTOP, Page, open_browser
from shop import TIMEOUT_S, Shop, free_port
from test_dashboard import SCRATCH

CLIENT_ID = "firstcome-ops"
TOKENS = {role: secrets.token_hex(16) for role in ("viewer", "operator")}

shop = None
driver = None
provider = None


class Provider:
    """The identity provider (tests/web/provider)."""

    def __init__(self, redirect_url):
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.secret = secrets.token_hex(24)
        self.redirect_url = redirect_url
        self.process = None
        # Modules are found in the folders above a file.
        directory = SCRATCH / "provider"
        directory.mkdir()
        modules = os.path.join(os.environ["OIDC_PROVIDER_DIR"], "node_modules")
        (directory / "node_modules").symlink_to(modules, target_is_directory=True)
        for name in ("package.json", "provider.mjs"):
            shutil.copy(os.path.join(os.path.dirname(__file__), "provider", name), directory)
        self.directory = directory

    def start(self):
        arguments = [str(self.port), CLIENT_ID, self.secret, self.redirect_url]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                [os.environ["NODE_BIN"], "provider.mjs", *arguments], cwd=self.directory, stdout=subprocess.PIPE, stderr=log, text=True
            )
        if self.process.stdout.readline().strip() != "listening":
            raise RuntimeError(f"the identity provider does not start: {(self.directory / 'log').read_text()[-2000:]}")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def settings(self):
        return {"OPS_OIDC_ISSUER": self.issuer, "OPS_OIDC_CLIENT_ID": CLIENT_ID, "OPS_OIDC_CLIENT_SECRET": self.secret}


def setUpModule():
    global shop, driver, provider
    shop = Shop(SCRATCH / "shop-of-roles")
    provider = Provider(f"{shop.base}/ops/oidc/callback")
    unittest.addModuleCleanup(provider.stop)
    shop.settings = provider.settings() | {"ADMIN_TOKENS": ",".join(f"{role}:{role}:{token}" for role, token in TOKENS.items())}
    unittest.addModuleCleanup(shop.stop)
    # The provider is not there yet: the service starts without it.
    shop.start()
    driver = open_browser(SCRATCH / "profile-of-roles")
    unittest.addModuleCleanup(driver.quit)


class SignedOut(unittest.TestCase):
    """A browser without a session, in English, at the page."""

    def setUp(self):
        self.page = Page(driver, shop.base)
        self.page.size(DESKTOP)
        self.forget()
        self.page.until(self.page.signed_out, "the page asks for a sign-in")

    def forget(self):
        driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.page.open("/ops/assets/icon.svg")
        driver.execute_script("localStorage.clear(); sessionStorage.clear()")
        self.page.open()

    def operator(self):
        return self.page.text("#operator-name"), self.page.text("#operator-role")

    def offered(self):
        """The roles that the buttons of the page need which are shown."""
        shown = "return [...document.querySelectorAll('main [data-needs]')].filter((it) => it.checkVisibility()).map((it) => it.dataset.needs)"
        return set(driver.execute_script(shown))


class Roles(SignedOut):
    def test_the_page_shows_what_the_role_may_do(self):
        shop.product("Roles", 1_000, 5)
        shop.campaign("ROLES", 5)
        for role, token, buttons in (("viewer", TOKENS["viewer"], set()), ("operator", TOKENS["operator"], {"operator"}), ("admin", shop.token, {"operator"})):
            self.forget()
            self.page.sign_in(token)
            self.page.until(lambda: self.page.all(".stock [data-product]") and self.page.all(".campaign[data-coupon]"), "the sale is shown")
            self.assertEqual(self.operator(), (role, role))
            self.assertEqual(self.offered(), buttons, role)
            self.assertIn(role, self.page.find("#operator").get_attribute("title"))
            self.page.click("#all-products")
            self.page.until(lambda: self.page.all("dialog[open] tbody tr"), "the products are listed")
            restock = self.page.find("dialog[open] tbody [data-needs=operator]")
            self.assertEqual(restock.is_displayed(), role != "viewer")
            self.page.close_dialogs()
            if role != "admin":
                self.page.screenshot(f"role-{role}")

    def test_the_service_refuses_what_the_page_hides(self):
        self.page.sign_in(TOKENS["viewer"])
        refused = driver.execute_async_script("""
            const done = arguments[arguments.length - 1];
            fetch('/admin/v1/products', {
                method: 'POST', headers: { 'content-type': 'application/json', 'x-firstcome-ops': '1' },
                body: JSON.stringify({ productName: 'x', price: 1, stockQuantity: 1, category: 'TOP' }),
            }).then(async (answer) => done([answer.status, (await answer.json()).errorCode]));
        """)
        self.assertEqual(refused, [403, "INSUFFICIENT_ROLE"])
        # A page that is older than the role: its button has the sentence.
        driver.execute_script("document.body.dataset.role = 'operator'")
        self.page.click("#new-product")
        self.page.fill(productName="x", price="1", stockQuantity="1", category="TOP")
        self.page.dialog().find_element("css selector", ".primary").click()
        self.page.until_equal("Your role may not do that.", lambda: self.page.text("dialog[open] form > .error").strip())
        self.page.close_dialogs()


class CompanyAccount(SignedOut):
    @classmethod
    def setUpClass(cls):
        provider.start()

    def at_provider(self, name):
        """Signs in at the provider, and agrees."""
        self.page.click("#sign-in-account")
        self.page.until(lambda: driver.current_url.startswith(provider.issuer), "the provider's page is shown")
        self.page.until(lambda: self.page.all("input[name=login]"), "the provider asks who it is")
        self.page.find("input[name=login]").send_keys(name)
        self.page.find("input[name=password]").send_keys("any", Keys.ENTER)
        self.page.until(lambda: not self.page.all("input[name=login]") and self.page.all("button[type=submit]"), "the provider asks for a consent")
        self.page.click("button[type=submit]")
        self.page.until(lambda: urllib.parse.urlsplit(driver.current_url)[:3] == ("http", f"127.0.0.1:{shop.port}", "/ops"), "the browser is back")

    def cookies(self):
        """The cookies of the service by name and path. (The provider has the same host, and cookies of its own.)"""
        every = driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
        return {(it["name"], it["path"]): it for it in every if it["name"].startswith("firstcome")}

    def log(self):
        return shop.log.read_text(errors="replace")

    def test_an_operator_signs_in_and_out(self):
        driver.get(f"{shop.base}/ops#sales")
        self.page.until(self.page.signed_out, "the page asks for a sign-in")
        self.page.until(lambda: self.page.find("#sign-in-account").is_displayed(), "the company's account is a way to sign in")
        self.page.screenshot("sign-in-account")
        self.at_provider("kim-operator")
        self.page.live()
        self.assertEqual(self.operator(), ("oidc:kim-operator@shop.example", "operator"))
        self.page.until(lambda: driver.current_url.endswith("/ops#sales") and self.page.all("dialog[open] .sale-chart"), "the page returns to where it was")
        self.page.close_dialogs()
        self.assertEqual(self.offered(), {"operator"})
        ours = self.cookies()
        self.assertEqual(set(ours), {("firstcome_ops", "/ops"), ("firstcome_ops", "/admin")})
        self.assertTrue(all(it["httpOnly"] and it["sameSite"] == "Strict" for it in ours.values()))
        # A write of the page, on record under the account.
        self.page.click("#new-product")
        self.page.fill(productName="By account", price="1", stockQuantity="1", category="TOP")
        self.page.submit()
        entry = shop.admin("GET", f"/operator-log?operator={urllib.parse.quote('oidc:kim-operator@shop.example')}")["content"][0]
        self.assertEqual((entry["action"], entry["role"], entry["status"]), ("POST /admin/v1/products", "operator", 201))
        self.page.click("#sign-out")
        self.page.until(self.page.signed_out, "the page asks for a sign-in")
        self.assertEqual(shop.status("GET", "/ops/session")[0], 401)

    def test_an_account_without_a_role_is_told_so(self):
        self.at_provider("lee")
        self.page.until_equal("This account has no operator’s role. Ask an administrator.", lambda: self.page.text("#sign-in-error"))
        self.assertTrue(self.page.signed_out())
        self.assertTrue(driver.current_url.endswith("/ops"), driver.current_url)
        self.page.screenshot("sign-in-refused")
        self.page.click("#sign-in-language")
        self.assertEqual(self.page.text("#sign-in-error"), "이 계정에는 운영자 역할이 없습니다. 관리자에게 요청해 주세요.")
        self.page.click("#sign-in-language")
        self.assertEqual(self.cookies(), {})
        self.assertIn("gives lee@shop.example no role: its claim roles names none of viewer, operator, admin", self.log())

    def test_a_url_that_comes_back_again_is_refused(self):
        self.at_provider("kim-admin")
        self.page.live()
        self.assertEqual(self.operator()[1], "admin")
        # The session stays; the URL of another sign-in does not replace it.
        driver.get(f"{shop.base}/ops/oidc/callback?code=stolen&state=stolen")
        self.page.live()
        self.assertEqual(self.operator()[1], "admin")
        self.assertIn("the browser did not begin this sign-in", self.log())

    def test_a_provider_that_is_away_is_told_and_tokens_go_on(self):
        provider.stop()
        self.addCleanup(provider.start)
        # What the service knows of the provider is an hour old at most: the browser finds it away.
        shop.stop()
        shop.start()
        self.forget()
        self.page.until(self.page.signed_out, "the page asks for a sign-in")
        self.page.click("#sign-in-account")
        self.page.until_equal("The company’s sign-in can’t be reached. Try again in a moment.", lambda: self.page.text("#sign-in-error"))
        self.page.sign_in(shop.token)
        self.assertEqual(self.operator()[1], "admin")
        self.assertNotIn(provider.secret, self.log())


if __name__ == "__main__":
    unittest.main()
