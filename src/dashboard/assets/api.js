// Calls of the page: the session, and the operators' API by the session's cookie.

/// A refusal, with its `errorCode`; `network` where there was no answer, so that its outcome is unknown.
export class Refused extends Error {
    constructor(status, code, message) {
        super(message);
        this.status = status;
        this.code = code;
    }

    get unknown() {
        return this.code === 'network' || this.status >= 500;
    }
}

const PATIENCE_MS = 20_000;
// An audit looks at everything there is.
const AUDIT_PATIENCE_MS = 30 * 60_000;

let onUnauthorized = () => {};
export function whenUnauthorized(callback) {
    onUnauthorized = callback;
}

async function call(method, path, { body, headers = {}, patience = PATIENCE_MS } = {}) {
    let response;
    let text;
    try {
        response = await fetch(path, {
            method,
            headers: { accept: 'application/json', ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
            body: body === undefined ? undefined : JSON.stringify(body),
            cache: 'no-store',
            credentials: 'same-origin',
            redirect: 'error',
            signal: AbortSignal.timeout(patience),
        });
        text = await response.text();
    } catch {
        throw new Refused(0, 'network', '');
    }
    let answer = null;
    try {
        answer = text === '' ? null : JSON.parse(text);
    } catch { /* Something between us and the service answered; its status is all there is. */ }
    if (response.ok) return answer;
    throw new Refused(response.status, answer?.errorCode ?? `HTTP ${response.status}`, answer?.message ?? '');
}

export const session = {
    /// Who is signed in; null if nobody is.
    async read() {
        try {
            return await call('GET', '/ops/session');
        } catch (refused) {
            if (refused.status === 401) return null;
            throw refused;
        }
    },
    signIn: (token) => call('POST', '/ops/session', { body: { token } }),
    signOut: () => call('DELETE', '/ops/session'),
};

async function admin(method, path, options = {}) {
    try {
        return await call(method, `/admin/v1${path}`, { ...options, headers: { 'x-firstcome-ops': '1', ...options.headers } });
    } catch (refused) {
        if (refused.status === 401) onUnauthorized();
        throw refused;
    }
}

export const read = (path) => admin('GET', path);
/// What every customer can see.
export const catalogue = (page, size) => call('GET', `/api/v1/products?page=${page}&size=${size}`);
export const audit = () => admin('GET', '/audit', { patience: AUDIT_PATIENCE_MS });

// A write whose outcome is unknown is repeated under its key, so that it happens once however often it is sent.
let unsettled = null;

export async function write(method, path, body) {
    const what = `${method} ${path} ${JSON.stringify(body)}`;
    const key = unsettled?.what === what ? unsettled.key : newKey();
    unsettled = null;
    try {
        return await admin(method, path, { body, headers: { 'idempotency-key': key } });
    } catch (refused) {
        if (refused.unknown) unsettled = { what, key };
        throw refused;
    }
}

function newKey() {
    const random = crypto.getRandomValues(new Uint8Array(16));
    return `ops-${Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}
