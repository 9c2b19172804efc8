"""Accessibility checks of a page: names, labels, headings, contrast, widths."""

from browser import whole
from selenium.webdriver.common.by import By

CONTROLS = "button, a[href], input:not([type=hidden]), select, summary, [role=tab], [tabindex='0']"


def nameless(driver):
    """Controls without an accessible name, as the browser computes it; of the open dialog, if any, since the rest is inert."""

    def find():
        dialogs = driver.find_elements(By.CSS_SELECTOR, "dialog[open]")
        within = dialogs[-1] if dialogs else driver
        return [
            control.get_attribute("outerHTML")[:120]
            for control in within.find_elements(By.CSS_SELECTOR, CONTROLS)
            if control.is_displayed() and not control.accessible_name.strip()
        ]

    return whole(driver, find)


STRUCTURE = """
const wrong = [];
const ids = [...document.querySelectorAll('[id]')].map(({ id }) => id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`two elements are #${id}`);
for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls'])
    for (const element of document.querySelectorAll(`[${name}]`))
        for (const id of element.getAttribute(name).split(/\\s+/))
            if (!document.getElementById(id)) wrong.push(`${name} names no element: ${id}`);
for (const label of document.querySelectorAll('label[for]'))
    if (!document.getElementById(label.htmlFor)) wrong.push(`a label of nothing: ${label.htmlFor}`);
for (const image of document.querySelectorAll('img:not([alt])')) wrong.push(`an image without alt: ${image.src}`);
for (const image of document.querySelectorAll('[role=img]:not([aria-label])')) wrong.push(`a picture without a text: ${image.outerHTML.slice(0, 80)}`);
for (const table of document.querySelectorAll('table')) if (!table.caption?.textContent.trim()) wrong.push('a table without a caption');
for (const [landmark, most] of [['main', 1], ['body > header', 1], ['nav', 9]]) {
    const count = document.querySelectorAll(landmark).length;
    if (count < 1 || count > most) wrong.push(`${count} × ${landmark}`);
}
if (document.querySelectorAll('h1').length !== 1) wrong.push('there is to be one h1');
if (!document.documentElement.lang) wrong.push('the page has no language');
if (document.querySelectorAll('[aria-live], [role=status], [role=alert]').length !== 1) wrong.push('one live region, for the status');
if (document.querySelector('[style*="color"]')) wrong.push('a colour that no theme knows');
for (const element of document.querySelectorAll('[data-t], [data-t-label]')) {
    const key = element.dataset.t ?? element.dataset.tLabel;
    if (element.textContent === key || element.getAttribute('aria-label') === key) wrong.push(`a text that is not there: ${key}`);
}
let level = 0;
for (const heading of document.querySelectorAll('main :is(h1, h2, h3, h4)')) {
    const next = Number(heading.tagName[1]);
    if (next > level + 1) wrong.push(`from h${level} to ${heading.outerHTML.slice(0, 60)}`);
    level = next;
}
return wrong;
"""

# The contrast of text and background in the computed colours. Disabled or hidden elements and pictures are excluded.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
};
const blend = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
        const colour = rgba(getComputedStyle(at).backgroundColor);
        if (colour[3] > 0) layers.push(colour);
        if (colour[3] === 1) break;
        if (at.tagName === 'DIALOG') break;
    }
    return layers.reverse().reduce((below, layer) => blend(layer, below), [255, 255, 255, 1]);
};
const luminance = ([r, g, b]) => [r, g, b]
    .map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
const pale = [];
for (const element of document.querySelectorAll('body *')) {
    const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!says || !element.checkVisibility({ visibilityProperty: true }) || element.closest('[disabled], [aria-disabled=true], .unseen, svg, canvas, noscript, .skip, option')) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const ink = blend(rgba(style.color), ground);
    const [high, low] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) pale.push(`${ratio.toFixed(2)}: ${element.textContent.trim().slice(0, 40)} (${element.className || element.tagName})`);
}
return pale;
"""

# Elements wider than the screen, except in scrolling regions.
WIDE = """
const width = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth <= width) return [];
return [...document.querySelectorAll('body *')]
    .filter((element) => element.getBoundingClientRect().right > width + 1 && !element.closest('.unseen, .scroll'))
    .map((element) => `${element.tagName}.${element.className}`).concat(`page ${document.documentElement.scrollWidth} > ${width}`);
"""
