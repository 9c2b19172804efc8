// Samples the service a few times a second beside the load: the lag of the projection, and what is left of the hot products and campaigns.

import { Gauge, Trend } from 'k6/metrics';
import { operator, unmeasured } from './api.js';

const lagEvents = new Trend('outbox_lag_events');
const lagSeconds = new Gauge('outbox_lag_seconds');
const remaining = new Gauge('remaining');

// A chart with more lines is unreadable.
const MAX_PRODUCTS = 4;
const MAX_CAMPAIGNS = 3;

let watched = { products: [], campaigns: [] };

/** Sets the products and campaigns that this VU samples: the first few of each. */
export function setWatched({ products = [], campaigns = [] }) {
    watched = { products: products.slice(0, MAX_PRODUCTS), campaigns: campaigns.slice(0, MAX_CAMPAIGNS) };
}

export function recordLag() {
    const { ok, body } = operator('GET admin projection', 'GET', '/admin/v1/projection');
    if (!ok) return null;
    lagEvents.add(body.lagEvents);
    lagSeconds.add(body.lagSeconds);
    return body;
}

export function recordRemaining() {
    for (const { id, name, stock } of watched.products) {
        const { ok, body } = unmeasured('GET product', 'GET', `/api/v1/products/${id}`);
        if (ok) remaining.add(body.stockQuantity, { kind: 'units', item: name, total: `${stock}` });
    }
    for (const { id, name, total } of watched.campaigns) {
        const { ok, body } = operator('GET admin campaign', 'GET', `/admin/v1/coupons/${id}`);
        if (ok) remaining.add(body.remainingQuantity, { kind: 'coupons', item: name, total: `${total}` });
    }
}

/** The function of the k6 scenario: one sample of everything. */
export function watch(data) {
    setWatched(data);
    recordLag();
    recordRemaining();
}

/** The k6 scenario that runs `watch` for `duration` seconds. */
export const watcher = (duration) => ({
    executor: 'constant-arrival-rate',
    exec: 'watch',
    rate: duration <= 60 ? 4 : 2,
    duration: `${duration}s`,
    preAllocatedVUs: 2,
    maxVUs: 4,
    gracefulStop: '10s',
});
