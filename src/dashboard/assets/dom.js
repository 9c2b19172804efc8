// Making elements and keeping them up to date. Text goes in as text only, and only where it changed.

const SVG = 'http://www.w3.org/2000/svg';

/// An element: `class`, `text` and `on*` handlers are set as such, everything else as attributes; null leaves one out.
export function h(name, props = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(props)) {
        if (value === null || value === undefined || value === false) continue;
        if (key === 'class') element.className = value;
        else if (key === 'text') element.textContent = value;
        else if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
        else element.setAttribute(key, value === true ? '' : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
}

export function svg(name, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
}

/// A picture of the page's set, for the eye only.
export const icon = (name) => svg('svg', { class: 'icon', 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));

export const byId = (id) => document.getElementById(id);

export function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

export function attribute(element, name, value) {
    if (value === null) element.removeAttribute(name);
    else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

const madeRows = new WeakMap();
const foundParts = new WeakMap();

/// Makes the children of `parent` those of `items`, in their order: each is made once per key, then updated.
export function each(parent, items, keyOf, make, update) {
    if (!madeRows.has(parent)) madeRows.set(parent, new Map());
    const rows = madeRows.get(parent);
    const focused = parent.contains(document.activeElement) ? document.activeElement : null;
    const keep = new Set();
    let place = parent.firstChild;
    for (const item of items) {
        const key = String(keyOf(item));
        if (keep.has(key)) continue;
        keep.add(key);
        let row = rows.get(key);
        if (!row) rows.set(key, (row = make(item)));
        if (row === place) place = place.nextSibling;
        else parent.insertBefore(row, place);
        update(row, item);
    }
    for (const [key, row] of rows) {
        if (keep.has(key)) continue;
        row.remove();
        rows.delete(key);
    }
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/// Parts of a row by their `data-part`, looked up once.
export function part(row, name) {
    if (!foundParts.has(row)) foundParts.set(row, {});
    return (foundParts.get(row)[name] ??= row.querySelector(`[data-part="${name}"]`));
}
