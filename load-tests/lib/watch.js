// What is seen of the service from beside the load, a few times a second: the outbox, and what is left of the hot things.

import { Gauge, Trend } from 'k6/metrics';
import { operator, quietly } from './api.js';

const lagEvents = new Trend('outbox_lag_events');
const lagSeconds = new Gauge('outbox_lag_seconds');
const remaining = new Gauge('remaining');

// More lines than these nobody can tell apart.
const MOST_PRODUCTS = 4;
const MOST_CAMPAIGNS = 3;

let watched = { products: [], campaigns: [] };

/** What this VU looks at from now on: the first few of each. */
export function watching({ products = [], campaigns = [] }) {
    watched = { products: products.slice(0, MOST_PRODUCTS), campaigns: campaigns.slice(0, MOST_CAMPAIGNS) };
}

export function seeLag() {
    const { ok, body } = operator('GET admin projection', 'GET', '/admin/v1/projection');
    if (!ok) return null;
    lagEvents.add(body.lagEvents);
    lagSeconds.add(body.lagSeconds);
    return body;
}

export function seeRemaining() {
    for (const { id, name, stock } of watched.products) {
        const { ok, body } = quietly('GET product', 'GET', `/api/v1/products/${id}`);
        if (ok) remaining.add(body.stockQuantity, { kind: 'units', item: name, total: `${stock}` });
    }
    for (const { id, name, total } of watched.campaigns) {
        const { ok, body } = operator('GET admin campaign', 'GET', `/admin/v1/coupons/${id}`);
        if (ok) remaining.add(body.remainingQuantity, { kind: 'coupons', item: name, total: `${total}` });
    }
}

/** The scenario's function. */
export function watch(data) {
    watching(data);
    seeLag();
    seeRemaining();
}

/** The k6 scenario that runs it for `duration` seconds. */
export const watcher = (duration) => ({
    executor: 'constant-arrival-rate',
    exec: 'watch',
    rate: duration <= 60 ? 4 : 2,
    duration: `${duration}s`,
    preAllocatedVUs: 2,
    maxVUs: 4,
    gracefulStop: '10s',
});
