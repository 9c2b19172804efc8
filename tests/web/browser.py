"""Headless Chromium, and the page through its roles, names and numbers."""

import base64
import os
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from shop import TIMEOUT_S, number

PHONE = (360, 780)
DESKTOP = (1440, 900)
WALL = (1920, 1080)


def open_browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ["CHROMIUM_BIN"]
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
                     "--force-device-scale-factor=1", "--lang=en-GB", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        # Chromium has no sandbox for root.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With an explicit driver, selenium does not fetch one.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(os.environ["CHROMEDRIVER_BIN"]))
    driver.set_script_timeout(TIMEOUT_S)
    driver.set_page_load_timeout(TIMEOUT_S)
    return driver


def wait(driver):
    """Waits until a condition is true, and tries again if the page replaces an element meanwhile."""
    return WebDriverWait(driver, TIMEOUT_S, poll_frequency=0.1, ignored_exceptions=[StaleElementReferenceException])


def whole(driver, look):
    """The value of `look()`, of one rendering of the page."""
    return wait(driver).until(lambda _: (look(),), "the page keeps replacing what is read")[0]


class Page:
    """The dashboard in the browser."""

    def __init__(self, driver, base):
        self.driver = driver
        self.base = base

    # --- looking -------------------------------------------------------------------------------------

    def until(self, condition, what):
        """Waits until `condition()` is true, and returns its value. Retries if a row is replaced meanwhile."""
        return wait(self.driver).until(lambda _: condition(), what)

    def until_equal(self, expected, look):
        seen = [None]

        def same():
            seen[0] = look()
            return seen[0] == expected

        try:
            self.until(same, "")
        except Exception as timeout:
            raise AssertionError(f"expected {expected!r}, last seen {seen[0]!r}") from timeout

    def each(self, selector, look):
        """`look(element)` of every element of `selector`, all of one rendering."""
        return whole(self.driver, lambda: [look(element) for element in self.all(selector)])

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        """The text of an element, visible or folded; empty without the element."""
        return self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def number(self, selector):
        text = self.text(selector)
        return number(text) if any(letter.isdigit() for letter in text) else None

    def level(self):
        return self.find("#status").get_attribute("data-level")

    def part(self, row, name):
        return f"{row} [data-part={name}]"

    def campaign(self, coupon, name):
        return self.text(self.part(f".campaign[data-coupon='{coupon}']", name))

    def left(self, coupon):
        return self.number(self.part(f".campaign[data-coupon='{coupon}']", "left"))

    def issued(self, coupon):
        return self.number(self.part(f".campaign[data-coupon='{coupon}']", "issued"))

    def stock(self, product):
        row = f".stock [data-product='{product}']"
        return tuple(self.number(self.part(row, name)) for name in ("onSale", "held", "sold"))

    def orders(self):
        return {status: self.number(self.part("#orders", status)) for status in ("PENDING", "PAID", "FAILED", "CANCELLED")}

    # --- doing -----------------------------------------------------------------------------------------

    def size(self, size):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, path="/ops"):
        self.driver.get(self.base + path)

    def signed_out(self):
        return self.driver.execute_script("return document.getElementById('sign-in')?.open === true")

    def sign_in(self, token):
        self.until(self.signed_out, "the page asks for a token")
        self.find("#token").send_keys(token)
        self.find("#sign-in-button").click()
        self.live()

    def live(self):
        self.until(lambda: self.find("#connection").get_attribute("data-state") == "live" and not self.signed_out(), "the feed is live")

    def click(self, selector):
        """Clicks an element once it is clickable: a row may be moving."""
        def clicked():
            element = self.find(selector)
            if not element.is_displayed() or not element.is_enabled():
                return False
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.until(clicked, f"{selector} can be clicked")

    def dialog(self):
        """The topmost dialog."""
        return self.until(lambda: (self.all("dialog[open]") or [None])[-1], "a dialog opens")

    def fill(self, **values):
        dialog = self.dialog()
        for name, value in values.items():
            field = dialog.find_element(By.NAME, name)
            if field.get_attribute("type") == "datetime-local":
                # Typing a date depends on the locale; its value does not.
                self.driver.execute_script("arguments[0].value = arguments[1]", field, value)
            elif field.tag_name == "select":
                field.find_element(By.CSS_SELECTOR, f"option[value='{value}']").click()
            else:
                field.clear()
                field.send_keys(value)
        return dialog

    def submit(self):
        """Submits the topmost dialog, and waits until it is closed."""
        before = len(self.all("dialog[open]"))
        self.dialog().find_element(By.CSS_SELECTOR, ".primary").click()
        self.until(lambda: len(self.all("dialog[open]")) < before, "the dialog closes")

    def close_dialogs(self):
        self.driver.execute_script("document.querySelectorAll('dialog.sheet[open]').forEach((dialog) => dialog.close())")

    def keys(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab(self):
        self.keys(Keys.TAB)
        return self.driver.switch_to.active_element

    def choose(self, language=None, theme=None):
        """Switches language and theme with the buttons."""
        if language and self.find("html").get_attribute("lang") != language:
            self.click("#language")
        for _ in range(3):
            if theme is None or (self.find("html").get_attribute("data-theme") or "auto") == theme:
                break
            self.click("#theme")

    def screenshot(self, name, whole=False):
        if whole:
            width, height = self.driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
            self.size((width, height))
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        Path(os.environ["TEST_WEB_SHOTS"], f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
