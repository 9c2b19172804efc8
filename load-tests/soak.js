// The customers of mixed-day at a constant rate for DURATION: shows whether the latency or the outbox grows with time.

import exec from 'k6/execution';
import { reconcile } from './lib/reconcile.js';
import { MAX_VUS, prepareDay, visit } from './lib/day.js';
import { duration, option } from './lib/options.js';
import * as rules from './lib/rules.js';
import { plural, summarize } from './lib/summary.js';
import { watch as sample, watcher } from './lib/watch.js';

const RATE = option('RATE', 25, { min: 1 });
const DURATION = duration('DURATION', 180);
const GROWTH_FACTOR = option('GROWTH_FACTOR', 2, { min: 1, integer: false });
const GROWTH_SLACK = option('GROWTH_SLACK_MS', 250);
const LAG_SLACK = option('LAG_SLACK', 500);
const LAST = 'phase:quarter 4';
const FIRST = 'phase:quarter 1';

const RULES = [
    ...rules.orders,
    ...rules.coupons,
    rules.none('replay_differs', 'the reply to a repeated write has the same bytes, and Idempotent-Replayed'),
    rules.none('stale_reads', 'every customer saw their own last write'),
    ...rules.common(RATE * DURATION),
    ...[FIRST, LAST].flatMap((part) => [rules.tracked(`api_latency{${part}}`), rules.tracked(`outbox_lag_events{${part}}`)]),
];

export const options = rules.options(RULES, {
    soak: {
        executor: 'constant-arrival-rate',
        exec: 'customer',
        rate: RATE,
        duration: `${DURATION}s`,
        preAllocatedVUs: Math.min(MAX_VUS, 20 + 3 * RATE),
        maxVUs: MAX_VUS,
    },
    watch: watcher(DURATION),
});

const tagQuarter = () => {
    exec.vu.metrics.tags.phase = `quarter ${Math.min(4, 1 + Math.floor(exec.scenario.progress * 4))}`;
};

export const setup = prepareDay;
export function customer(data) {
    tagQuarter();
    visit(data);
}
export function watch(data) {
    tagQuarter();
    sample(data);
}
export function teardown(data) {
    reconcile(data);
}

const growth = (description, metric, stat, slack) => ({ description, metric, stat, of: LAST, to: FIRST, factor: GROWTH_FACTOR, slack });

export const handleSummary = summarize({
    name: 'soak',
    title: 'Soak',
    proves: 'The same load for a long time: neither the answers nor the projection to PostgreSQL get slower, and at the end the books balance.',
    rules: RULES,
    comparisons: [
        growth('the last quarter is as fast as the first: the median', 'api_latency', 'med', GROWTH_SLACK),
        growth('the last quarter is as fast as the first: 95 of 100 answers', 'api_latency', 'p(95)', GROWTH_SLACK),
        growth('the outbox does not grow: decisions not yet in PostgreSQL', 'outbox_lag_events', 'p(95)', LAG_SLACK),
    ],
    headline: (read) => [
        { value: `${Math.round(DURATION / 6) / 10} min`, label: `at ${RATE} visits a second` },
        plural(read('api_latency'), 'answer'),
        { ...plural(read('server_errors'), 'server error'), ok: read('server_errors') === 0 },
        { ...plural(read('stale_reads'), 'stale read'), ok: read('stale_reads') === 0 },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
