// Regular customers buy an ordinary product throughout. From one second to the next a crowd comes for one hot product and its
// coupons, and leaves. The latency of the regular customers before, during and after the crowd is compared.

import exec from 'k6/execution';
import { reconcile } from './lib/reconcile.js';
import { duration, option } from './lib/options.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { milliseconds, plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const RATE = option('RATE', 20, { min: 1 });
const JUMP = option('JUMP', 20, { min: 2 });
const BASELINE = duration('BASELINE', 15);
const SPIKE = duration('SPIKE', 10);
const SETTLE = duration('SETTLE', 5);
const RECOVERY = duration('RECOVERY', 15);
const STOCK = option('STOCK', 300, { min: 1 });
const COUPONS = option('COUPONS', 200, { min: 1 });
const RECOVERY_FACTOR = option('RECOVERY_FACTOR', 2, { min: 1, integer: false });
const RECOVERY_SLACK = option('RECOVERY_SLACK_MS', 250);
const MAX_VUS = option('MAX_VUS', 1000, { min: 1 });
const DURATION = BASELINE + SPIKE + SETTLE + RECOVERY;
const CROWD_RATE = RATE * (JUMP - 1);
const CROWD = CROWD_RATE * SPIKE;
const REGULARS = RATE * DURATION;

const regularLatency = (phase) => `api_latency{phase:${phase}}`;

const RULES = [
    ...rules.orders,
    ...rules.coupons,
    ...rules.common(CROWD + REGULARS),
    ...['baseline', 'spike', 'recovery'].map((phase) => rules.tracked(regularLatency(phase))),
];

export const options = rules.options(RULES, {
    regular: {
        executor: 'constant-arrival-rate',
        exec: 'regular',
        rate: RATE,
        duration: `${DURATION}s`,
        preAllocatedVUs: Math.min(MAX_VUS, 20 + RATE),
        maxVUs: MAX_VUS,
    },
    crowd: {
        executor: 'constant-arrival-rate',
        exec: 'crowd',
        startTime: `${BASELINE}s`,
        rate: CROWD_RATE,
        duration: `${SPIKE}s`,
        // The crowd arrives at once, so its virtual users exist beforehand.
        preAllocatedVUs: Math.min(MAX_VUS, CROWD_RATE),
        maxVUs: MAX_VUS,
    },
    watch: watcher(DURATION),
});

export function setup() {
    const run = prepare.newRun();
    const firstUser = prepare.users(run, REGULARS + CROWD + 1, 1000000);
    const products = [
        prepare.product(run, 'hot', 99000, STOCK),
        prepare.product(run, 'ordinary', 9000, 2 * REGULARS),
    ];
    const campaigns = [prepare.campaign(run, 'coupons', COUPONS, 'PERCENTAGE', 20)];
    return { firstUser, products, campaigns, ...prepare.probe(firstUser + REGULARS + CROWD, products[1]) };
}

function phase() {
    const at = (Date.now() - exec.scenario.startTime) / 1000;
    if (at < BASELINE) return 'baseline';
    if (at < BASELINE + SPIKE) return 'spike';
    return at < BASELINE + SPIKE + SETTLE ? 'settling' : 'recovery';
}

/** A visit of a regular customer. */
export function regular({ firstUser, products: [, ordinary], hold }) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= REGULARS) return;
    exec.vu.metrics.tags.phase = phase();
    shop.product(ordinary.id);
    const placed = shop.place(firstUser + iterationInTest, [[ordinary.id, 1]]);
    if (placed.ok) shop.pay(placed.order, hold);
}

/** A visit of one of the crowd. */
export function crowd({ firstUser, products: [hot], campaigns: [campaign], hold }) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= CROWD) return;
    const user = firstUser + REGULARS + iterationInTest;
    shop.product(hot.id);
    const taken = shop.takeCoupon(user, campaign.id, { allow: ['COUPON_OUT_OF_STOCK'] });
    const placed = shop.place(user, [[hot.id, 1]], { coupon: taken.ok ? campaign.id : undefined });
    if (placed.ok && shop.chance(0.9)) shop.pay(placed.order, hold);
}

export function teardown(data) {
    reconcile(data);
}

export const handleSummary = summarize({
    name: 'spike',
    title: 'Spike',
    proves: `A crowd ${JUMP} times the usual, from one second to the next, for one product: nothing breaks, and afterwards every customer is served as before.`,
    rules: RULES,
    comparisons: [
        {
            description: 'the regular customers are served as fast after the spike as before it',
            metric: 'api_latency',
            stat: 'p(95)',
            of: 'phase:recovery',
            to: 'phase:baseline',
            factor: RECOVERY_FACTOR,
            slack: RECOVERY_SLACK,
        },
    ],
    headline: (read) => [
        { value: `${JUMP}×`, label: 'the usual crowd' },
        { value: milliseconds(read(regularLatency('baseline'), 'p(95)')), label: 'p95 of regular customers, before' },
        { value: milliseconds(read(regularLatency('spike'), 'p(95)')), label: 'p95 during it' },
        { value: milliseconds(read(regularLatency('recovery'), 'p(95)')), label: 'p95 after it' },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
