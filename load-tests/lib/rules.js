// What has to hold, as k6 thresholds, each with the words that the report has for it.

import { knob, share } from './knobs.js';

// For a machine that is busy with other things, too; `load-tests/README.md` says what to set on a quiet one.
const P95 = knob('P95_MS', 2000, { least: 1 });
const P99 = knob('P99_MS', 5000, { least: 1 });
const MAX_ERRORS = share('MAX_ERROR_RATE', 0);
const MAX_DROPPED = share('MAX_DROPPED', 0.05);

/** `condition` on `metric`, in words. `kind`: what the report lists it under. */
export const rule = (kind, metric, condition, words) => ({ kind, metric, condition, words });

export const none = (metric, words) => rule('correctness', metric, 'count==0', words);

/** Only so that k6 keeps the numbers of a part of a metric. */
export const kept = (metric) => rule('hidden', metric, 'p(95)>=0', '');

const toldIsKept = (what) => none(`told_minus_kept{what:${what}}`, `${what} that customers were told of = ${what} in the books`);

const ended = [
    rule('correctness', 'books_balanced', 'count==1', 'the audit recomputed every conservation law, and they hold'),
    none('outbox_stuck', 'PostgreSQL got everything that Redis decided'),
    none('units_oversold', 'nothing was sold or given out that there was not'),
    none('units_missing', 'on sale + held + sold = stock, and left + issued = total'),
];

/** For every scenario. `arrivals`: how many iterations k6 was asked to start. */
export const common = (arrivals) => [
    ...ended,
    none('server_errors', 'no 5xx, no 429'),
    none('unexpected_answers', 'every refusal was one that the customer had earned'),
    rule('errors', 'http_req_failed', `rate<=${MAX_ERRORS}`, 'failed requests'),
    rule('errors', 'dropped_iterations', `count<=${Math.floor(arrivals * MAX_DROPPED)}`, 'arrivals that k6 could not make, as all its VUs were waiting'),
    rule('latency', 'api_latency', `p(95)<${P95}`, '95 of 100 answers'),
    rule('latency', 'api_latency', `p(99)<${P99}`, '99 of 100 answers'),
];

/** For scenarios with orders. */
export const orders = [
    toldIsKept('paid orders'),
    toldIsKept('units'),
    toldIsKept('won'),
    none('holds_left', 'every hold has ended'),
];

/** For scenarios with campaigns. */
export const coupons = [toldIsKept('coupons')];

/** k6's own options for `rules`. */
export function options(rules, scenarios) {
    const thresholds = {};
    for (const { metric, condition } of rules) (thresholds[metric] = thresholds[metric] || []).push(condition);
    return {
        scenarios,
        thresholds,
        setupTimeout: '15m',
        teardownTimeout: '30m',
        summaryTrendStats: ['avg', 'min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max', 'count'],
        // Every sample carries its tags: only those that are looked at.
        systemTags: ['name', 'status', 'scenario'],
        userAgent: 'firstcome-load-test',
    };
}
