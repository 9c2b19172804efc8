// The feed of events: read from the begin of a run to its end, it has every acknowledged write once, and no gap.

import { sleep } from 'k6';
import { Counter } from 'k6/metrics';
import { operator } from './api.js';
import { option } from './options.js';
import * as rules from './rules.js';

const gaps = new Counter('feed_gaps');
const events = new Counter('feed_events');
const missing = new Counter('feed_missing');

const PATH = '/admin/v1/events';
// 0 for a deployment that keeps no events.
const FEED = option('FEED', 1, { min: 0, max: 1 }) === 1;

export const FEED_RULES = !FEED ? [] : [
    rules.none('feed_gaps', 'the feed has every decision of the run, in the order of its partition'),
    rules.none('feed_missing', 'the feed has every paid order'),
    rules.rule('correctness', 'feed_events', 'count>0', 'the feed was read to its end'),
];

/** Where the feed ends now. */
export function feedEnd() {
    if (!FEED) return null;
    const { ok, outcome, body } = operator('GET admin events', 'GET', `${PATH}?after=latest&limit=1`);
    if (!ok) throw new Error(`the feed answers ${outcome}`);
    return body.next;
}

/** Reads the feed after `after` to its end. `orders`: those that the deployment records. */
export function checkFeed(after, orders) {
    if (!FEED) return;
    const last = new Map();
    const paid = new Set();
    let next = after;
    for (let more = true, failures = 0; more && failures < 10; ) {
        const { ok, body } = operator('GET admin events', 'GET', `${PATH}?after=${encodeURIComponent(next)}&limit=1000`);
        if (!ok) {
            failures++;
            sleep(1);
            continue;
        }
        for (const { id, type, data } of body.events) {
            const [, partition, seq] = id.split('-').map(Number);
            if (last.has(partition) && seq !== last.get(partition) + 1) gaps.add(1);
            last.set(partition, seq);
            if (type === 'order.paid') paid.add(data.orderId);
        }
        events.add(body.events.length);
        ({ next, more } = body);
    }
    const recorded = orders.filter(({ orderStatus }) => orderStatus === 'PAID');
    missing.add(recorded.filter(({ orderId }) => !paid.has(orderId)).length);
}
