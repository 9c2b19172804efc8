// A campaign opens. Many more users than coupons ask for one, in an open model: arrivals do not wait for answers. The service
// issues exactly as many coupons as the campaign has, each number once, and refuses every other user at once.

import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { readAll } from './lib/api.js';
import { reconcile } from './lib/reconcile.js';
import { option, share } from './lib/options.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import { chance, takeCoupon, takeCouponTwice } from './lib/shop.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const COUPONS = option('COUPONS', 1000, { min: 1 });
const USERS = option('USERS', 10000, { min: COUPONS + 1 });
const RATE = option('RATE', 500, { min: 1 });
const DOUBLE_TAP = share('DOUBLE_TAP', 0.1);
const TAP_AGAIN = share('TAP_AGAIN', 0.2);
const MAX_VUS = option('MAX_VUS', 600, { min: 1 });
// The teardown reads every user's own list of coupons, up to so many users: for more it takes too long.
const VERIFY_USERS = option('VERIFY_USERS', 100000);
const SECONDS = Math.ceil(USERS / RATE);

const won = new Counter('coupons_won');
const numbers = new Counter('issue_numbers_sum');
const numbersWrong = new Counter('issue_numbers_wrong');
const unfair = new Counter('unfair_answers');
const turnedAway = new Counter('customers_turned_away');
const unanswered = new Counter('customers_unanswered');

const RULES = [
    rules.rule('correctness', 'coupons_won', `count==${COUPONS}`, 'every coupon was issued, and not one more'),
    rules.rule('correctness', 'issue_numbers_sum', `count==${(COUPONS * (COUPONS + 1)) / 2}`, 'the issued numbers are 1 to the last'),
    rules.none('issue_numbers_wrong', "each number is in exactly one user's list afterwards"),
    rules.none('unfair_answers', 'two taps: a winner gets INVALID_COUPON, every other user COUPON_OUT_OF_STOCK'),
    rules.none('customers_unanswered', 'every arrival got a coupon or COUPON_OUT_OF_STOCK'),
    ...rules.coupons,
    ...rules.common(USERS),
];

export const options = rules.options(RULES, {
    rush: {
        executor: 'constant-arrival-rate',
        exec: 'customer',
        rate: RATE,
        duration: `${SECONDS}s`,
        preAllocatedVUs: Math.min(MAX_VUS, 100 + Math.ceil(RATE / 5)),
        maxVUs: MAX_VUS,
    },
    watch: watcher(SECONDS),
});

export function setup() {
    const run = prepare.newRun();
    return { firstUser: prepare.users(run, USERS), campaigns: [prepare.campaign(run, 'coupons', COUPONS)] };
}

export function customer({ firstUser, campaigns: [{ id }] }) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= USERS) return;
    const user = firstUser + iterationInTest;
    unanswered.add(1);
    const answers = chance(DOUBLE_TAP)
        ? takeCouponTwice(user, id)
        : [takeCoupon(user, id, { allow: ['COUPON_OUT_OF_STOCK'] })];
    const given = answers.filter(({ ok }) => ok);
    const refusal = given.length > 0 ? 'INVALID_COUPON' : 'COUPON_OUT_OF_STOCK';
    if (chance(TAP_AGAIN)) answers.push(takeCoupon(user, id, { allow: [refusal] }));

    given.forEach(({ body: { issueNo } }) => {
        won.add(1);
        numbers.add(issueNo);
        if (!(issueNo >= 1 && issueNo <= COUPONS)) numbersWrong.add(1);
    });
    const refused = answers.filter(({ outcome }) => outcome === refusal).length;
    if (given.length > 1 || given.length + refused !== answers.length) unfair.add(1);
    if (given.length === 0 && refused > 0) turnedAway.add(1);
    if (given.length > 0 || refused > 0) unanswered.add(-1);
}

export function teardown(data) {
    reconcile(data);
    if (USERS <= VERIFY_USERS) verify(data);
}

/** Counts each issue number that is not in exactly one user's own list of coupons. */
function verify({ firstUser, campaigns: [{ id }] }) {
    const holders = new Array(COUPONS + 1).fill(0);
    const paths = Array.from({ length: USERS }, (_, at) => `/api/v1/coupons/${firstUser + at}`);
    for (const list of readAll('GET coupons', paths)) {
        for (const { couponId, issueNo } of list || []) {
            if (couponId !== id || !(issueNo >= 1 && issueNo <= COUPONS)) numbersWrong.add(1);
            else holders[issueNo] += 1;
        }
    }
    numbersWrong.add(holders.slice(1).filter((count) => count !== 1).length);
}

export const handleSummary = summarize({
    name: 'coupon-rush',
    title: 'Coupon rush',
    proves: 'Far more users than coupons, all at once: every coupon goes to exactly one user, and every other user gets a clean refusal.',
    rules: RULES,
    headline: (read) => [
        plural(COUPONS, 'coupon'),
        { ...plural(read('coupons_won'), 'winner'), ok: read('coupons_won') === COUPONS },
        plural(read('customers_turned_away'), 'turned away', 'turned away'),
        { ...plural(read('units_oversold'), 'over-issued', 'over-issued'), ok: read('units_oversold') === 0 },
    ],
});
