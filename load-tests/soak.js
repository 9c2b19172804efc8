// An ordinary day's customers at a constant rate for as long as you like: what grows with time (latency, the outbox) shows.

import exec from 'k6/execution';
import { settle } from './lib/books.js';
import { MAX_VUS, prepareDay, visit } from './lib/day.js';
import { knob, seconds } from './lib/knobs.js';
import * as rules from './lib/rules.js';
import { plural, summarize } from './lib/summary.js';
import { watch as look, watcher } from './lib/watch.js';

const RATE = knob('RATE', 25, { least: 1 });
const DURATION = seconds('DURATION', 180);
const GROWTH_FACTOR = knob('GROWTH_FACTOR', 2, { least: 1, whole: false });
const GROWTH_SLACK = knob('GROWTH_SLACK_MS', 250);
const LAG_SLACK = knob('LAG_SLACK', 500);
const LAST = 'phase:quarter 4';
const FIRST = 'phase:quarter 1';

const laws = [
    ...rules.orders,
    ...rules.coupons,
    rules.none('replay_differs', 'a repeated write is answered with the same bytes, and marked'),
    rules.none('stale_reads', 'everyone saw their own last write'),
    ...rules.common(RATE * DURATION),
    ...[FIRST, LAST].flatMap((part) => [rules.kept(`api_latency{${part}}`), rules.kept(`outbox_lag_events{${part}}`)]),
];

export const options = rules.options(laws, {
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

const nameTheQuarter = () => {
    exec.vu.metrics.tags.phase = `quarter ${Math.min(4, 1 + Math.floor(exec.scenario.progress * 4))}`;
};

export const setup = prepareDay;
export function customer(data) {
    nameTheQuarter();
    visit(data);
}
export function watch(data) {
    nameTheQuarter();
    look(data);
}
export function teardown(data) {
    settle(data);
}

const grows = (words, metric, stat, slack) => ({ words, metric, stat, of: LAST, to: FIRST, factor: GROWTH_FACTOR, slack });

export const handleSummary = summarize({
    name: 'soak',
    title: 'Soak',
    proves: 'The same load for long: neither the answers nor the way to PostgreSQL get slower, and at the end the books balance.',
    rules: laws,
    comparisons: [
        grows('the last quarter is as fast as the first: the median', 'api_latency', 'med', GROWTH_SLACK),
        grows('the last quarter is as fast as the first: 95 of 100 answers', 'api_latency', 'p(95)', GROWTH_SLACK),
        grows('the outbox does not fill: waiting decisions', 'outbox_lag_events', 'p(95)', LAG_SLACK),
    ],
    headline: (read) => [
        { value: `${Math.round(DURATION / 6) / 10} min`, words: `at ${RATE} visits a second` },
        plural(read('api_latency'), 'answer'),
        { ...plural(read('server_errors'), 'server error'), ok: read('server_errors') === 0 },
        { ...plural(read('stale_reads'), 'stale read'), ok: read('stale_reads') === 0 },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
