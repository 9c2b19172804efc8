// The rules of the scenarios: k6 thresholds, each with a description for the report.

import { option, share } from './options.js';

// Wide enough for a busy machine; `load-tests/README.md` has the values for a quiet one.
const P95 = option('P95_MS', 2000, { min: 1 });
const P99 = option('P99_MS', 5000, { min: 1 });
const MAX_ERRORS = share('MAX_ERROR_RATE', 0);
const MAX_DROPPED = share('MAX_DROPPED', 0.05);

/** `condition` on `metric`, with a description. `kind`: its group in the report. */
export const rule = (kind, metric, condition, description) => ({ kind, metric, condition, description });

/** The count of `metric` is zero. */
export const none = (metric, description) => rule('correctness', metric, 'count==0', description);

/** Always holds: k6 keeps the values of a sub-metric only where a threshold names it. */
export const tracked = (metric) => rule('hidden', metric, 'p(95)>=0', '');

const acknowledgedEqualsRecorded = (kind) => none(`acknowledged_minus_recorded{kind:${kind}}`, `acknowledged ${kind} = recorded ${kind}`);

const ended = [
    rule('correctness', 'audit_balanced', 'count==1', 'the audit recomputed every invariant, and they hold'),
    none('outbox_stuck', 'PostgreSQL has every decision of Redis'),
    none('units_oversold', 'no more units sold or coupons issued than there were'),
    none('units_missing', 'on sale + held + sold + off sale = stock, and left + issued = total'),
];

/** For every scenario. `arrivals`: the number of iterations that k6 is to start. */
export const common = (arrivals) => [
    ...ended,
    none('server_errors', 'no 5xx, no 429'),
    none('unexpected_answers', 'every refusal was one that the call allows'),
    rule('errors', 'http_req_failed', `rate<=${MAX_ERRORS}`, 'failed requests'),
    rule('errors', 'dropped_iterations', `count<=${Math.floor(arrivals * MAX_DROPPED)}`, 'arrivals that k6 dropped because all its virtual users were waiting'),
    rule('latency', 'api_latency', `p(95)<${P95}`, '95 of 100 answers'),
    rule('latency', 'api_latency', `p(99)<${P99}`, '99 of 100 answers'),
];

/** For scenarios with orders. */
export const orders = [
    acknowledgedEqualsRecorded('paid orders'),
    acknowledgedEqualsRecorded('units'),
    acknowledgedEqualsRecorded('won'),
    none('holds_left', 'every hold has ended'),
];

/** For scenarios with refunds. */
export const refunds = [acknowledgedEqualsRecorded('units off sale')];

/** For scenarios with campaigns. */
export const coupons = [acknowledgedEqualsRecorded('coupons')];

/** k6's options for a scenario with `rules`. */
export function options(rules, scenarios) {
    const thresholds = {};
    for (const { metric, condition } of rules) (thresholds[metric] = thresholds[metric] || []).push(condition);
    return {
        scenarios,
        thresholds,
        setupTimeout: '15m',
        teardownTimeout: '30m',
        summaryTrendStats: ['avg', 'min', 'med', 'p(90)', 'p(95)', 'p(99)', 'max', 'count'],
        // Every sample carries its tags: only those that the report reads.
        systemTags: ['name', 'status', 'scenario'],
        userAgent: 'firstcome-load-test',
    };
}
