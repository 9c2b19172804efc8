// Quiet customers buy ordinary things throughout. Then a crowd comes from one second to the next, for one hot product and its
// coupons, and goes again. How the quiet ones fare before, during and after it is compared like with like.

import exec from 'k6/execution';
import { settle } from './lib/books.js';
import { knob, seconds } from './lib/knobs.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { milliseconds, plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const RATE = knob('RATE', 20, { least: 1 });
const JUMP = knob('JUMP', 20, { least: 2 });
const BASELINE = seconds('BASELINE', 15);
const SPIKE = seconds('SPIKE', 10);
const SETTLE = seconds('SETTLE', 5);
const RECOVERY = seconds('RECOVERY', 15);
const STOCK = knob('STOCK', 300, { least: 1 });
const COUPONS = knob('COUPONS', 200, { least: 1 });
const RECOVERY_FACTOR = knob('RECOVERY_FACTOR', 2, { least: 1, whole: false });
const RECOVERY_SLACK = knob('RECOVERY_SLACK_MS', 250);
const MAX_VUS = knob('MAX_VUS', 1000, { least: 1 });
const DURATION = BASELINE + SPIKE + SETTLE + RECOVERY;
const CROWD_RATE = RATE * (JUMP - 1);
const CROWD = CROWD_RATE * SPIKE;
const QUIET = RATE * DURATION;

const quietly = (phase) => `api_latency{phase:${phase}}`;

const laws = [
    ...rules.orders,
    ...rules.coupons,
    ...rules.common(CROWD + QUIET),
    ...['baseline', 'spike', 'recovery'].map((phase) => rules.kept(quietly(phase))),
];

export const options = rules.options(laws, {
    quiet: {
        executor: 'constant-arrival-rate',
        exec: 'quiet',
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
        // A crowd is there at once.
        preAllocatedVUs: Math.min(MAX_VUS, CROWD_RATE),
        maxVUs: MAX_VUS,
    },
    watch: watcher(DURATION),
});

export function setup() {
    const run = prepare.newRun();
    const firstUser = prepare.users(run, QUIET + CROWD + 1, 1000000);
    const products = [
        prepare.product(run, 'hot', 99000, STOCK),
        prepare.product(run, 'ordinary', 9000, 2 * QUIET),
    ];
    const campaigns = [prepare.campaign(run, 'coupons', COUPONS, 'PERCENTAGE', 20)];
    return { firstUser, products, campaigns, ...prepare.probe(firstUser + QUIET + CROWD, products[1]) };
}

function phase() {
    const at = (Date.now() - exec.scenario.startTime) / 1000;
    if (at < BASELINE) return 'baseline';
    if (at < BASELINE + SPIKE) return 'spike';
    return at < BASELINE + SPIKE + SETTLE ? 'settling' : 'recovery';
}

/** Somebody who wants nothing special. */
export function quiet({ firstUser, products: [, ordinary], hold }) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= QUIET) return;
    exec.vu.metrics.tags.phase = phase();
    shop.product(ordinary.id);
    const placed = shop.place(firstUser + iterationInTest, [[ordinary.id, 1]]);
    if (placed.ok) shop.pay(placed.order, hold);
}

/** One of the crowd. */
export function crowd({ firstUser, products: [hot], campaigns: [campaign], hold }) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= CROWD) return;
    const user = firstUser + QUIET + iterationInTest;
    shop.product(hot.id);
    const taken = shop.takeCoupon(user, campaign.id, { allow: ['COUPON_OUT_OF_STOCK'] });
    const placed = shop.place(user, [[hot.id, 1]], { coupon: taken.ok ? campaign.id : undefined });
    if (placed.ok && shop.chance(0.9)) shop.pay(placed.order, hold);
}

export function teardown(data) {
    settle(data);
}

export const handleSummary = summarize({
    name: 'spike',
    title: 'Spike',
    proves: `A crowd ${JUMP} times the usual, from one second to the next, for one product: nothing breaks, and afterwards everyone is served as before.`,
    rules: laws,
    comparisons: [
        {
            words: 'the quiet customers are served as fast after the spike as before it',
            metric: 'api_latency',
            stat: 'p(95)',
            of: 'phase:recovery',
            to: 'phase:baseline',
            factor: RECOVERY_FACTOR,
            slack: RECOVERY_SLACK,
        },
    ],
    headline: (read) => [
        { value: `${JUMP}×`, words: 'the usual crowd' },
        { value: milliseconds(read(quietly('baseline'), 'p(95)')), words: 'p95 of bystanders, before' },
        { value: milliseconds(read(quietly('spike'), 'p(95)')), words: 'p95 during it' },
        { value: milliseconds(read(quietly('recovery'), 'p(95)')), words: 'p95 after it' },
        { ...plural(read('units_oversold'), 'oversold', 'oversold'), ok: read('units_oversold') === 0 },
    ],
});
