// An announced sale: a shoe in several sizes goes on sale at a set second, one per person over all sizes, with a coupon that has
// conditions. People come before the second and after it, and order and pay in one step. It ends with exactly the stock sold.

import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { operator } from './lib/api.js';
import { reconcile } from './lib/reconcile.js';
import { option, share } from './lib/options.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const PEOPLE = option('PEOPLE', 20000, { min: 1 });
const DOOR = Math.min(PEOPLE, option('DOOR', 200, { max: 5000 }));
const SIZES = option('SIZES', 5, { min: 1, max: 19 });
const STOCK = option('STOCK', 600, { min: 1 });
const LIMIT = option('LIMIT', 1, { min: 1, max: 100 });
const COUPONS = option('COUPONS', 2000, { min: 1 });
const RATE = option('RATE', 250, { min: 1 });
const LEAD = option('LEAD', 8, { min: 4, max: 600 });
const EARLY = share('EARLY', 0.3);
const DOUBLE_TAP = share('DOUBLE_TAP', 0.1);
const AGAIN = share('AGAIN', 0.2);
const POOR = share('POOR', 0.03);
const MAX_VUS = option('MAX_VUS', 800, { min: 1 });

const CROWD = PEOPLE - DOOR;
const CROWD_SECONDS = Math.max(1, Math.ceil(CROWD / RATE));
const TOTAL_STOCK = SIZES * STOCK;
const PRICE = 129000;
/** A tenth, at most 5,000 won, of orders from 100,000 won. */
const DISCOUNT = Math.min(Math.floor(PRICE / 10), 5000);
/** Seconds around the opening within which the clocks of this machine and of the store may differ. */
const SLACK_MS = 1500;

const NAMES = Array.from({ length: SIZES }, (_, at) => `size ${230 + 5 * at}`);
const soldOf = (name) => `units_sold{item:${name}}`;

const soldUnits = new Counter('units_sold');
const early = new Counter('sold_before_opening');
const earlyTries = new Counter('tries_before_opening');
const aboveLimit = new Counter('above_the_limit');
const toldWrongly = new Counter('buyers_told_otherwise');
const pricesWrong = new Counter('prices_wrong');
const misused = new Counter('coupons_misused');
const turnedAway = new Counter('people_turned_away');
const limitMiscounted = new Counter('limit_miscounted');

const RULES = [
    ...rules.orders,
    ...rules.coupons,
    ...rules.common(CROWD),
    // Counted from the replies to customers, independent of the orders that the service lists. Enough people come for all of it.
    ...NAMES.map((name) => rules.rule('correctness', soldOf(name), PEOPLE * (1 - POOR) * 0.9 > TOTAL_STOCK ? `count==${STOCK}` : `count<=${STOCK}`, `${name}: exactly its stock is sold`)),
    rules.none('sold_before_opening', 'nothing is sold before the second'),
    rules.none('above_the_limit', `nobody has more than ${LIMIT}, by the replies and by the recorded orders`),
    rules.none('limit_miscounted', 'the service counts the units of each buyer as the orders do'),
    rules.none('buyers_told_otherwise', 'a buyer at the limit who comes again is told so, never "sold out"'),
    rules.none('prices_wrong', 'the coupon takes off exactly what its conditions say'),
    rules.none('coupons_misused', 'the coupon is refused for a product that does not qualify'),
    ...(DOOR * EARLY >= 20 ? [rules.rule('correctness', 'tries_before_opening', 'count>0', 'some tried before the second')] : []),
];

const scenarios = {
    door: { executor: 'per-vu-iterations', exec: 'atTheDoor', vus: Math.max(1, DOOR), iterations: 1, maxDuration: `${LEAD + 120}s` },
    watch: watcher(LEAD + CROWD_SECONDS),
};
if (CROWD > 0) {
    scenarios.crowd = {
        executor: 'constant-arrival-rate',
        exec: 'afterTheSecond',
        startTime: `${LEAD}s`,
        rate: RATE,
        duration: `${CROWD_SECONDS}s`,
        preAllocatedVUs: Math.min(MAX_VUS, 100 + RATE),
        maxVUs: MAX_VUS,
    };
}
export const options = rules.options(RULES, scenarios);

export function setup() {
    const run = prepare.newRun();
    const firstUser = prepare.users(run, PEOPLE + 1, 1000000);
    const firstPoor = prepare.users(run, PEOPLE + 1);
    const plain = prepare.product(run, 'plain', PRICE, 1000000);
    const probed = prepare.probe(firstUser + PEOPLE, plain);
    // By the clock of the deployment, at a whole second.
    const opens = Date.parse(`${probed.since}Z`) + Math.ceil((Date.now() - probed.at) / 1000) * 1000 + LEAD * 1000;
    const terms = { opensAt: prepare.local(opens), limitPerUser: LIMIT, limitGroup: run.slice(0, 32) };
    const sizes = NAMES.map((name) => prepare.product(run, name, PRICE, STOCK, terms));
    const conditions = { minOrderPrice: 100000, maxDiscountPrice: 5000, productIds: sizes.map(({ id }) => id) };
    const campaigns = [prepare.campaign(run, 'coupons', COUPONS, 'PERCENTAGE', 10, conditions)];
    // On this machine's clock the sale opens here, or up to a second earlier.
    const opensHere = probed.at + opens - Date.parse(`${probed.since}Z`);
    return { run, firstUser, firstPoor, products: sizes, plain, campaigns, opensAt: terms.opensAt, opensHere, ...probed };
}

function countSale(answer, coupon, data) {
    const [[product]] = answer.order.lines;
    soldUnits.add(answer.order.units, { item: data.products.find(({ id }) => id === product).name });
    if (answer.body.orderedAt < data.opensAt) early.add(1);
    const discount = coupon ? DISCOUNT : 0;
    const wrong = answer.body.orderStatus !== 'PAID' || answer.body.finalPrice !== PRICE * answer.order.units - discount;
    if (wrong) pricesWrong.add(1);
}

const shuffled = (list) => list.map((it) => [Math.random(), it]).sort((a, b) => a[0] - b[0]).map(([, it]) => it);

/** Tries sizes until one is left for this person. Returns the number of units bought. */
function buy(user, poor, coupon, data) {
    const open = () => Date.now() > data.opensHere + SLACK_MS;
    const allow = () => ['SOLD_OUT', ...(poor ? ['INSUFFICIENT_BALANCE'] : []), ...(open() ? [] : ['NOT_ON_SALE'])];
    let sizes = shuffled(data.products);
    if (sizes.length > 1 && LIMIT === 1 && shop.chance(DOUBLE_TAP)) {
        // Two tabs: at most one of them gets a pair. One coupon is for one order.
        const orders = sizes.slice(0, 2).map(({ id }) => [[id, 1]]);
        const answers = shop.checkoutTogether(user, orders, { allow: [...allow(), 'PURCHASE_LIMIT_EXCEEDED'] });
        const bought = answers.filter(({ ok }) => ok);
        bought.forEach((answer) => countSale(answer, undefined, data));
        if (bought.length > LIMIT) aboveLimit.add(1);
        if (bought.length > 0) return bought.length;
    }
    while (sizes.length > 0) {
        const [{ id }] = sizes;
        const answer = shop.checkout(user, [[id, 1]], { coupon, allow: allow() });
        if (answer.ok) {
            countSale(answer, coupon, data);
            return 1;
        }
        if (answer.outcome === 'NOT_ON_SALE' && !open()) {
            sleep(0.05);
        } else if (answer.outcome === 'SOLD_OUT') {
            // The list shows which sizes are left.
            const list = shop.catalog(data.run);
            if (!list.ok) return 0;
            const left = new Set(list.body.content.filter(({ stockQuantity }) => stockQuantity > 0).map(({ productId }) => productId));
            sizes = sizes.slice(1).filter((size) => left.has(size.id));
        } else {
            return 0;
        }
    }
    return 0;
}

function visit(user, poor, data) {
    const [campaign] = data.campaigns;
    const size = shop.pick(data.products);
    shop.product(size.id);
    const taken = shop.chance(0.6) && shop.takeCoupon(user, campaign.id, { allow: ['COUPON_OUT_OF_STOCK'] });
    const coupon = taken && taken.ok ? campaign.id : undefined;
    if (coupon && shop.chance(0.02)) {
        const { ok } = shop.checkout(user, [[data.plain.id, 1]], { coupon, allow: ['INVALID_COUPON'] });
        if (ok) misused.add(1);
    }
    const waits = data.opensHere - Date.now();
    if (waits > SLACK_MS + 1000 && shop.chance(EARLY)) {
        earlyTries.add(1);
        const answer = shop.checkout(user, [[size.id, 1]], { allow: ['NOT_ON_SALE'] });
        if (answer.ok) early.add(1);
    }
    const left = data.opensHere - 1000 - Date.now();
    if (left > 0) sleep(left / 1000);
    let bought = buy(user, poor, coupon, data);
    if (bought === 0) {
        turnedAway.add(1);
        return;
    }
    if (!shop.chance(AGAIN)) return;
    // Comes again, and tries one more than the limit.
    sleep(Math.random());
    for (let tries = 0; bought <= LIMIT && tries <= LIMIT; tries++) {
        const answer = shop.checkout(user, [[shop.pick(data.products).id, 1]], { allow: ['PURCHASE_LIMIT_EXCEEDED', 'SOLD_OUT'] });
        if (answer.ok) {
            bought += 1;
            countSale(answer, undefined, data);
            if (bought > LIMIT) aboveLimit.add(1);
        } else {
            if (answer.outcome === 'SOLD_OUT' && bought >= LIMIT) toldWrongly.add(1);
            return;
        }
    }
}

function person(at, data) {
    const poor = shop.chance(POOR);
    visit((poor ? data.firstPoor : data.firstUser) + at, poor, data);
}

/** Waits for the second. */
export function atTheDoor(data) {
    if (exec.scenario.iterationInTest < DOOR) person(exec.scenario.iterationInTest, data);
}

export function afterTheSecond(data) {
    if (exec.scenario.iterationInTest < CROWD) person(DOOR + exec.scenario.iterationInTest, data);
}

/** Looks for orders before the second and buyers above the limit in what the service recorded. */
function inspect(orders, data) {
    const ours = new Set(data.products.map(({ id }) => id));
    const units = new Map();
    for (const { userId, orderStatus, orderedAt, orderProducts } of orders) {
        if (orderStatus !== 'PAID' && orderStatus !== 'PENDING') continue;
        if (orderedAt < data.opensAt) early.add(1);
        const of = orderProducts.filter(({ productId }) => ours.has(productId)).reduce((sum, { quantity }) => sum + quantity, 0);
        units.set(userId, (units.get(userId) || 0) + of);
    }
    for (const count of units.values()) if (count > LIMIT) aboveLimit.add(1);
    const { ok, body } = operator('GET admin buyers', 'GET', `/admin/v1/products/${data.products[0].id}/buyers?size=1`);
    const full = [...units.values()].filter((count) => count >= LIMIT).length;
    if (!ok || (body.complete && (body.totalElements !== units.size || body.usersAtLimit !== full))) limitMiscounted.add(1);
}

export function teardown(data) {
    reconcile(data, (orders) => inspect(orders, data));
}

export const handleSummary = summarize({
    name: 'flash-sale',
    title: 'Announced sale',
    proves: 'A shoe in several sizes goes on sale at a set second, with a limit per person over all sizes and a coupon with conditions: nothing is sold before it, nobody gets more than the limit, and exactly the stock is sold.',
    rules: RULES,
    headline: (read) => [
        { value: String(PEOPLE).replace(/\B(?=(\d{3})+$)/g, ','), label: 'people' },
        { ...plural(read('units_sold'), `of ${TOTAL_STOCK} sold`, `of ${TOTAL_STOCK} sold`), ok: read('units_sold') <= TOTAL_STOCK },
        { ...plural(read('sold_before_opening'), 'before the second', 'before the second'), ok: read('sold_before_opening') === 0 },
        { ...plural(read('above_the_limit'), 'above the limit', 'above the limit'), ok: read('above_the_limit') === 0 },
        { ...plural(read('units_missing'), 'unaccounted for', 'unaccounted for'), ok: read('units_missing') === 0 },
    ],
});
