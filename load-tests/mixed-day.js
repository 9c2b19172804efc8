// A day in fast motion: customers browse, charge, collect coupons, buy, cancel, return and read their history, at a rate that follows
// the hours. A share of the writes is repeated under its idempotency key, and the shop's other system brings products and users in again.
// Every customer sees their own last write, and the feed of events has every sale.

import { reconcile } from './lib/reconcile.js';
import { MAX_VUS, bringIn, prepareDay, visit } from './lib/day.js';
import { FEED_RULES, checkFeed, feedEnd } from './lib/feed.js';
import { duration, option } from './lib/options.js';
import * as rules from './lib/rules.js';
import { plural, summarize } from './lib/summary.js';
import { watch as sample, watcher } from './lib/watch.js';

const PEAK = option('PEAK', 60, { min: 1 });
const DURATION = duration('DURATION', 60);

// Shares of the peak: night, morning, lunch, afternoon, evening, night.
const NIGHT = 0.1;
const HOURS = [0.4, 0.9, 0.5, 1, NIGHT];
const HOUR = Math.max(1, Math.round(DURATION / HOURS.length));
const stages = HOURS.map((share) => ({ target: Math.max(1, Math.round(PEAK * share)), duration: `${HOUR}s` }));
const arrivals = HOURS.reduce((sum, share, at) => sum + (PEAK * HOUR * (share + (HOURS[at - 1] || NIGHT))) / 2, 0);

const RULES = [
    ...rules.orders,
    ...rules.coupons,
    rules.none('replay_differs', 'the reply to a repeated write has the same bytes, and Idempotent-Replayed'),
    rules.rule('correctness', 'replays', 'count>0', 'writes were repeated under their idempotency keys'),
    rules.none('stale_reads', 'every customer saw their own last write'),
    ...FEED_RULES,
    ...rules.common(arrivals),
];

export const options = rules.options(RULES, {
    day: {
        executor: 'ramping-arrival-rate',
        exec: 'customer',
        startRate: Math.max(1, Math.round(PEAK * NIGHT)),
        stages,
        preAllocatedVUs: Math.min(MAX_VUS, 20 + 2 * PEAK),
        maxVUs: MAX_VUS,
    },
    watch: watcher(HOUR * HOURS.length),
});

export const setup = () => ({ feed: feedEnd(), ...prepareDay() });
export const customer = visit;
export function watch(data) {
    sample(data);
    bringIn(data);
}
export function teardown(data) {
    reconcile(data, (orders) => checkFeed(data.feed, orders));
}

export const handleSummary = summarize({
    name: 'mixed-day',
    title: 'A mixed day',
    proves: 'Everything that customers do, at once: nothing is lost, nothing is done twice, every customer sees their own last write.',
    rules: RULES,
    headline: (read) => [
        plural(read('iterations'), 'visit'),
        plural(read('api_latency'), 'answer'),
        { ...plural(read('replays'), 'identical replay'), ok: read('replay_differs') === 0 },
        { ...plural(read('stale_reads'), 'stale read'), ok: read('stale_reads') === 0 },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
