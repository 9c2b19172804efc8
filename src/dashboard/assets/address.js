// The address of the page: `#wall`, `#sales`, `#product-12`; `#sign-in-role` after a refused sign-in, with the reason.

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

/// Why the identity provider's sign-in was refused, by the address, which forgets it; null if it was not.
export function takeRefusal() {
    const reason = /^#sign-in-([a-z]{1,20})$/.exec(location.hash)?.[1] ?? null;
    if (reason !== null) setHash('');
    return reason;
}

const RETURN = 'firstcome.return';

/// The address to which the page returns from the identity provider.
export const returnToAddress = {
    save() {
        try {
            sessionStorage.setItem(RETURN, location.hash);
        } catch { /* No storage: the page returns without it. */ }
    },
    restore() {
        try {
            const hash = sessionStorage.getItem(RETURN);
            sessionStorage.removeItem(RETURN);
            if (hash && location.hash === '') setHash(hash);
        } catch { /* Likewise. */ }
    },
};
