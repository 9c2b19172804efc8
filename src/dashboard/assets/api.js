// The HTTP calls of the page: the session, and the operators' API with the session's cookie.

/// A failed call, with its `errorCode`; `network` without an answer, so that its outcome is unknown.
export class ApiError extends Error {
    constructor(status, code, message) {
        super(message);
        this.status = status;
        this.code = code;
    }

    get unknown() {
        return this.code === 'network' || this.status >= 500;
    }
}

const TIMEOUT_MS = 20_000;
// An audit reads both stores completely.
const AUDIT_TIMEOUT_MS = 30 * 60_000;

let unauthorized = () => {};
/// Sets the callback for a session that has ended.
export function onUnauthorized(callback) {
    unauthorized = callback;
}

async function call(method, path, { body, headers = {}, timeout = TIMEOUT_MS } = {}) {
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
            signal: AbortSignal.timeout(timeout),
        });
        text = await response.text();
    } catch {
        throw new ApiError(0, 'network', '');
    }
    let answer = null;
    try {
        answer = text === '' ? null : JSON.parse(text);
    } catch { /* A proxy answered without JSON: only its status is known. */ }
    if (response.ok) return answer;
    throw new ApiError(response.status, answer?.errorCode ?? `HTTP ${response.status}`, answer?.message ?? '');
}

export const session = {
    /// The signed-in operator; null without a session.
    async read() {
        try {
            return await call('GET', '/ops/session');
        } catch (error) {
            if (error.status === 401) return null;
            throw error;
        }
    },
    /// How operators may sign in: `{ token, oidc }`.
    ways: () => call('GET', '/ops/sign-in'),
    signIn: (token) => call('POST', '/ops/session', { body: { token } }),
    signOut: () => call('DELETE', '/ops/session'),
};

async function admin(method, path, options = {}) {
    try {
        return await call(method, `/admin/v1${path}`, { ...options, headers: { 'x-firstcome-ops': '1', ...options.headers } });
    } catch (error) {
        if (error.status === 401) unauthorized();
        throw error;
    }
}

export const read = (path) => admin('GET', path);
/// A page of the public list of products.
export const catalog = (page, size) => call('GET', `/api/v1/products?page=${page}&size=${size}`);
export const audit = () => admin('GET', '/audit', { timeout: AUDIT_TIMEOUT_MS });

// The last write with an unknown outcome. The same write takes its idempotency key again, so that it takes effect once.
let unknown = null;

export async function write(method, path, body) {
    const request = `${method} ${path} ${JSON.stringify(body)}`;
    const key = unknown?.request === request ? unknown.key : newKey();
    unknown = null;
    try {
        return await admin(method, path, { body, headers: { 'idempotency-key': key } });
    } catch (error) {
        if (error.unknown) unknown = { request, key };
        throw error;
    }
}

function newKey() {
    const random = crypto.getRandomValues(new Uint8Array(16));
    return `ops-${Array.from(random, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}
