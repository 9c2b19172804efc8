// Creates and updates elements. Text is inserted as text, never as markup, and only where it changed.

const SVG = 'http://www.w3.org/2000/svg';

/// Creates an element. `class`, `text` and `on*` set the class, the text and listeners; other keys set attributes. null skips a key.
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

/// A decorative icon of the page's sprite.
export const icon = (name) => svg('svg', { class: 'icon', 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));

export const byId = (id) => document.getElementById(id);

/// Sets the text of an element, if it differs.
export function updateText(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/// Sets an attribute, if it differs; null removes it.
export function updateAttribute(element, name, value) {
    if (value === null) element.removeAttribute(name);
    else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

const rowsOf = new WeakMap();
const partsOf = new WeakMap();

/// Makes the children of `parent` match `items`, in order. Creates one child per key with `make`, then calls `update` on each.
export function updateList(parent, items, keyOf, make, update) {
    if (!rowsOf.has(parent)) rowsOf.set(parent, new Map());
    const rows = rowsOf.get(parent);
    const focused = parent.contains(document.activeElement) ? document.activeElement : null;
    const present = new Set();
    let place = parent.firstChild;
    for (const item of items) {
        const key = String(keyOf(item));
        if (present.has(key)) continue;
        present.add(key);
        let row = rows.get(key);
        if (!row) rows.set(key, (row = make(item)));
        if (row === place) place = place.nextSibling;
        else parent.insertBefore(row, place);
        update(row, item);
    }
    for (const [key, row] of rows) {
        if (present.has(key)) continue;
        row.remove();
        rows.delete(key);
    }
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/// The part of a row with that `data-part`; cached per row.
export function part(row, name) {
    if (!partsOf.has(row)) partsOf.set(row, {});
    return (partsOf.get(row)[name] ??= row.querySelector(`[data-part="${name}"]`));
}
