// A day in fast motion: looking, charging, collecting coupons, buying, cancelling, returning, reading one's history, at a rate that
// follows the hours. Writes are repeated under their idempotency keys, and everyone sees their own last write.

import { settle } from './lib/books.js';
import { MAX_VUS, prepareDay, visit } from './lib/day.js';
import { knob, seconds } from './lib/knobs.js';
import * as rules from './lib/rules.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const PEAK = knob('PEAK', 60, { least: 1 });
const DURATION = seconds('DURATION', 60);

// Shares of the peak: night, morning, lunch, afternoon, evening, night.
const NIGHT = 0.1;
const HOURS = [0.4, 0.9, 0.5, 1, NIGHT];
const HOUR = Math.max(1, Math.round(DURATION / HOURS.length));
const stages = HOURS.map((share) => ({ target: Math.max(1, Math.round(PEAK * share)), duration: `${HOUR}s` }));
const arrivals = HOURS.reduce((sum, share, at) => sum + (PEAK * HOUR * (share + (HOURS[at - 1] || NIGHT))) / 2, 0);

const laws = [
    ...rules.orders,
    ...rules.coupons,
    rules.none('replay_differs', 'a repeated write is answered with the same bytes, and marked'),
    rules.rule('correctness', 'replays', 'count>0', 'writes were repeated under their idempotency keys'),
    rules.none('stale_reads', 'everyone saw their own last write'),
    ...rules.common(arrivals),
];

export const options = rules.options(laws, {
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

export const setup = prepareDay;
export const customer = visit;
export function teardown(data) {
    settle(data);
}

export const handleSummary = summarize({
    name: 'mixed-day',
    title: 'A mixed day',
    proves: 'Everything that customers do, at once: nothing lost, nothing done twice, everyone sees their own last write.',
    rules: laws,
    headline: (read) => [
        plural(read('iterations'), 'visit'),
        plural(read('api_latency'), 'answer'),
        { ...plural(read('replays'), 'identical replay'), ok: read('replay_differs') === 0 },
        { ...plural(read('stale_reads'), 'stale read'), ok: read('stale_reads') === 0 },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
