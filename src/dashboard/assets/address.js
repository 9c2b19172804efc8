// The address of the page: `#wall`, `#sales`, `#product-12`.

const handlers = [];

function setHash(hash) {
    globalThis.history.replaceState(null, '', location.pathname + location.search + hash);
}

/// Gives the address `hash` to the page until the dialog closes.
export function nameWhileOpen(hash, dialog) {
    const before = location.hash;
    setHash(hash);
    dialog.addEventListener('close', () => {
        if (location.hash === hash) setHash(before === hash ? '' : before);
    });
}

/// Sets what to open at addresses that match `pattern`: `open(match)`.
export function onAddress(pattern, open) {
    handlers.push([pattern, open]);
}

/// Opens what the address names.
export function openAddress() {
    for (const [pattern, open] of handlers) {
        const match = pattern.exec(location.hash);
        if (match) open(match);
    }
}
