// HTTP to the service. Measures every call and classifies its answer by *outcome*: OK; REPLAYED (an idempotent repeat); the
// `errorCode` of a refusal; HTTP_<status> without an `errorCode`; NO_ANSWER without a response. A call lists the refusals that it
// allows. Any other answer counts in `unexpected_answers`; a 5xx or 429 counts in `server_errors` as well.

import http from 'k6/http';
import { Counter, Trend } from 'k6/metrics';

const BASE_URL = (__ENV.BASE_URL || 'http://127.0.0.1:8080').replace(/\/+$/, '');
const JSON_TYPE = { 'Content-Type': 'application/json' };

/**
 * Milliseconds from the moment that a request could be sent to the end of its answer, by `op`, `outcome` and `phase`: k6's `blocked`
 * (waiting for a connection and opening it) plus its `duration`, which excludes both.
 */
const latency = new Trend('api_latency', true);
const unexpected = new Counter('unexpected_answers');
const serverErrors = new Counter('server_errors');

// A refusal is not a failed request; no answer, 429 and 5xx are.
http.setResponseCallback(http.expectedStatuses({ min: 200, max: 428 }, { min: 430, max: 499 }));

const json = (response) => {
    try {
        return response.json();
    } catch (_) {
        return null;
    }
};

function outcomeOf(response, body) {
    if (response.status === 0) return 'NO_ANSWER';
    if (response.status < 300) return response.headers['Idempotent-Replayed'] === 'true' ? 'REPLAYED' : 'OK';
    return (body && body.errorCode) || `HTTP_${response.status}`;
}

let reported = 0;
function reportUnexpected(op, outcome, response) {
    unexpected.add(1, { op, outcome });
    if (++reported <= 3) {
        const id = response.headers['X-Request-Id'] || '-';
        console.error(`${op}: ${outcome} was not expected (status ${response.status}, x-request-id ${id}) ${response.error}`);
    }
}

function classify(op, response, allow, measured) {
    const body = json(response);
    const outcome = outcomeOf(response, body);
    if (measured) latency.add(response.timings.blocked + response.timings.duration, { op, outcome });
    if (response.status >= 500 || response.status === 429) serverErrors.add(1, { op, outcome });
    const ok = outcome === 'OK' || outcome === 'REPLAYED';
    if (!ok && !allow.includes(outcome)) reportUnexpected(op, outcome, response);
    return { ok, outcome, status: response.status, body, text: response.body, replayed: outcome === 'REPLAYED' };
}

function request(op, method, path, body, { key, headers = {}, timeout = '60s' } = {}) {
    const params = { headers: body === undefined ? headers : { ...JSON_TYPE, ...headers }, tags: { name: op }, timeout };
    if (key) params.headers = { ...params.headers, 'Idempotency-Key': key };
    return { method, url: BASE_URL + path, body: body === undefined ? null : JSON.stringify(body), params };
}

/** One measured call. `allow`: the outcomes other than OK and REPLAYED that it expects. */
export function call(op, method, path, body, { allow = [], ...options } = {}) {
    const { url, body: text, params } = request(op, method, path, body, options);
    return classify(op, http.request(method, url, text, params), allow, true);
}

/** The same call with each of `bodies`, in parallel. */
export function together(bodies, op, method, path, { allow = [] } = {}) {
    const responses = http.batch(bodies.map((body) => request(op, method, path, body)));
    return responses.map((response) => classify(op, response, allow, true));
}

/** The same call `times` times, in parallel. */
export const atOnce = (times, op, method, path, body, options) =>
    together(Array.from({ length: times }, () => body), op, method, path, options);

/** Unmeasured GETs of `paths`, 50 in parallel. Returns the bodies in the order of `paths`. */
export function readAll(op, paths) {
    const bodies = [];
    for (let at = 0; at < paths.length; at += 50) {
        const some = paths.slice(at, at + 50).map((path) => request(op, 'GET', path));
        for (const response of http.batch(some)) bodies.push(classify(op, response, [], false).body);
    }
    return bodies;
}

/** A call that is not part of the load: not in `api_latency`. */
export function unmeasured(op, method, path, body, { allow = [], ...options } = {}) {
    const { url, body: text, params } = request(op, method, path, body, options);
    return classify(op, http.request(method, url, text, params), allow, false);
}

/** The headers of a call by an operator. */
export function operatorHeaders() {
    if (!__ENV.ADMIN_TOKEN) throw new Error('ADMIN_TOKEN, the token of the operators\' API, is not set');
    return { Authorization: `Bearer ${__ENV.ADMIN_TOKEN}` };
}

/** An unmeasured call to the operators' API. */
export const operator = (op, method, path, body, options = {}) =>
    unmeasured(op, method, path, body, { ...options, headers: operatorHeaders() });
