// A few hot products with fewer units than customers. A customer browses, takes a coupon, orders, then pays, cancels or abandons the
// order. An abandoned order expires and its units are sold again; at the end every unit is accounted for.

import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { reconcile } from './lib/reconcile.js';
import { duration, option, share } from './lib/options.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const PRODUCTS = option('PRODUCTS', 3, { min: 1, max: 100 });
const STOCK = option('STOCK', 200, { min: 1 });
const COUPONS = option('COUPONS', 150, { min: 1 });
const RATE = option('RATE', 40, { min: 1 });
const DURATION = duration('DURATION', 30);
const POOR = share('POOR', 0.05);
const CANCEL = share('CANCEL', 0.1);
const ABANDON = share('ABANDON', 0.15);
const THINK = option('THINK_MS', 300) / 1000;
const MAX_VUS = option('MAX_VUS', 500, { min: 1 });
const USERS = RATE * DURATION;
const TOTAL_STOCK = PRODUCTS * STOCK;
const PRICE = 59000;

const NAMES = Array.from({ length: PRODUCTS }, (_, at) => `shoe ${at + 1}`);
const soldOf = (name) => `units_sold{item:${name}}`;

const soldUnits = new Counter('units_sold');
const turnedAway = new Counter('customers_turned_away');
const abandoned = new Counter('orders_abandoned');

const RULES = [
    ...rules.orders,
    ...rules.coupons,
    ...rules.common(USERS),
    // Counted from the replies to customers, independent of the orders that the service lists.
    ...NAMES.map((name) => rules.rule('correctness', soldOf(name), `count<=${STOCK}`, `${name}: no more units sold than its stock`)),
];

export const options = rules.options(RULES, {
    sale: {
        executor: 'constant-arrival-rate',
        exec: 'customer',
        rate: RATE,
        duration: `${DURATION}s`,
        preAllocatedVUs: Math.min(MAX_VUS, 50 + 2 * RATE),
        maxVUs: MAX_VUS,
    },
    watch: watcher(DURATION),
});

export function setup() {
    const run = prepare.newRun();
    const firstUser = prepare.users(run, USERS + 1, 1000000);
    const firstPoor = prepare.users(run, USERS + 1);
    const products = NAMES.map((name, at) => prepare.product(run, name, PRICE + 10000 * at, STOCK));
    const campaigns = [prepare.campaign(run, 'coupons', COUPONS, 'FIXED', 5000)];
    return { firstUser, firstPoor, products, campaigns, ...prepare.probe(firstUser + USERS, products[0]) };
}

const think = () => sleep(THINK * (0.5 + Math.random()));

/** A product; the first is the most likely. */
const anyProduct = (products) => products[Math.floor(products.length * Math.random() ** 1.5)];

export function customer(data) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= USERS) return;
    const poor = shop.chance(POOR);
    const user = (poor ? data.firstPoor : data.firstUser) + iterationInTest;
    const { id, name } = anyProduct(data.products);

    shop.popular();
    const seen = shop.product(id);
    think();
    const [campaign] = data.campaigns;
    const taken = shop.chance(0.5) && shop.takeCoupon(user, campaign.id, { allow: ['COUPON_OUT_OF_STOCK'] });
    const coupon = taken && taken.ok ? campaign.id : undefined;

    // A customer who sees a stock of zero seldom orders.
    if (seen.ok && seen.body.stockQuantity === 0 && shop.chance(0.7)) {
        turnedAway.add(1);
        return;
    }
    const lines = [[id, shop.chance(0.2) ? 2 : 1]];
    let placed = shop.place(user, lines, { coupon, allow: poor ? ['INSUFFICIENT_BALANCE'] : [] });
    if (placed.outcome === 'INSUFFICIENT_BALANCE') {
        // The refused order holds nothing. The customer charges the balance and orders again.
        for (let charged = 0; charged < 2; charged++) shop.charge(user, shop.MAX_CHARGE);
        placed = shop.place(user, lines, { coupon });
    }
    if (!placed.ok) {
        turnedAway.add(1);
        return;
    }
    think();
    const choice = Math.random();
    if (choice < ABANDON) {
        abandoned.add(1);
    } else if (choice < ABANDON + CANCEL) {
        shop.cancel(placed.order, data.hold);
    } else if (shop.pay(placed.order, data.hold).ok) {
        soldUnits.add(placed.order.units, { item: name });
    }
}

export function teardown(data) {
    reconcile(data);
}

const oversold = (read) =>
    NAMES.reduce((sum, name) => sum + Math.max(0, read(soldOf(name)) - STOCK), read('units_oversold'));

export const handleSummary = summarize({
    name: 'flash-sale',
    title: 'Flash sale',
    proves: 'Few units, many customers, some of whom abandon their order: its units are sold again, and every unit is accounted for.',
    rules: RULES,
    headline: (read) => [
        plural(TOTAL_STOCK, 'unit'),
        plural(read('units_sold'), 'sold', 'sold'),
        plural(read('orders_abandoned'), 'order abandoned', 'orders abandoned'),
        { ...plural(read('units_missing'), 'unaccounted for', 'unaccounted for'), ok: read('units_missing') === 0 },
        { ...plural(oversold(read), 'oversold', 'oversold'), ok: oversold(read) === 0 },
    ],
});
