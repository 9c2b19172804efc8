// A few hot products, fewer units than people who want them: browse, take a coupon, order, then pay, think better of it, or walk
// away. What is abandoned comes back by itself and is sold to somebody else; in the end every unit is accounted for.

import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { settle } from './lib/books.js';
import { knob, seconds, share } from './lib/knobs.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const PRODUCTS = knob('PRODUCTS', 3, { least: 1, most: 100 });
const STOCK = knob('STOCK', 200, { least: 1 });
const COUPONS = knob('COUPONS', 150, { least: 1 });
const RATE = knob('RATE', 40, { least: 1 });
const DURATION = seconds('DURATION', 30);
const POOR = share('POOR', 0.05);
const CANCEL = share('CANCEL', 0.1);
const ABANDON = share('ABANDON', 0.15);
const THINK = knob('THINK_MS', 300) / 1000;
const MAX_VUS = knob('MAX_VUS', 500, { least: 1 });
const USERS = RATE * DURATION;
const STOCK_IN_ALL = PRODUCTS * STOCK;
const PRICE = 59000;

const NAMES = Array.from({ length: PRODUCTS }, (_, at) => `shoe ${at + 1}`);
const soldOf = (name) => `units_sold{item:${name}}`;

const soldUnits = new Counter('units_sold');
const soldOut = new Counter('customers_turned_away');
const abandoned = new Counter('orders_abandoned');

const laws = [
    ...rules.orders,
    ...rules.coupons,
    ...rules.common(USERS),
    // As customers were told, whatever the books say.
    ...NAMES.map((name) => rules.rule('correctness', soldOf(name), `count<=${STOCK}`, `${name}: not more units sold than there were`)),
];

export const options = rules.options(laws, {
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

/** The first is wanted most. */
const wanted = (products) => products[Math.floor(products.length * Math.random() ** 1.5)];

export function customer(data) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= USERS) return;
    const poor = shop.chance(POOR);
    const user = (poor ? data.firstPoor : data.firstUser) + iterationInTest;
    const { id, name } = wanted(data.products);

    shop.popular();
    const seen = shop.product(id);
    think();
    const [campaign] = data.campaigns;
    const taken = shop.chance(0.5) && shop.takeCoupon(user, campaign.id, { allow: ['COUPON_OUT_OF_STOCK'] });
    const coupon = taken && taken.ok ? campaign.id : undefined;

    // Who sees that there is nothing left seldom tries.
    if (seen.ok && seen.body.stockQuantity === 0 && shop.chance(0.7)) {
        soldOut.add(1);
        return;
    }
    const lines = [[id, shop.chance(0.2) ? 2 : 1]];
    let placed = shop.place(user, lines, { coupon, allow: poor ? ['INSUFFICIENT_BALANCE'] : [] });
    if (placed.outcome === 'INSUFFICIENT_BALANCE') {
        // Nothing is held for somebody without money: they charge, and try again.
        for (let charged = 0; charged < 2; charged++) shop.charge(user, shop.MAX_CHARGE);
        placed = shop.place(user, lines, { coupon });
    }
    if (!placed.ok) {
        soldOut.add(1);
        return;
    }
    think();
    const dice = Math.random();
    if (dice < ABANDON) {
        abandoned.add(1);
    } else if (dice < ABANDON + CANCEL) {
        shop.cancel(placed.order, data.hold);
    } else if (shop.pay(placed.order, data.hold).ok) {
        soldUnits.add(placed.order.units, { item: name });
    }
}

export function teardown(data) {
    settle(data);
}

const oversold = (read) =>
    NAMES.reduce((sum, name) => sum + Math.max(0, read(soldOf(name)) - STOCK), read('units_oversold'));

export const handleSummary = summarize({
    name: 'flash-sale',
    title: 'Flash sale',
    proves: 'Few units, many customers, some of whom walk away: what they leave comes back and is sold once more, and every unit is accounted for.',
    rules: laws,
    headline: (read) => [
        plural(STOCK_IN_ALL, 'unit'),
        plural(read('units_sold'), 'sold', 'sold'),
        plural(read('orders_abandoned'), 'order abandoned', 'orders abandoned'),
        { ...plural(read('units_missing'), 'unaccounted for', 'unaccounted for'), ok: read('units_missing') === 0 },
        { ...plural(oversold(read), 'oversold', 'oversold'), ok: oversold(read) === 0 },
    ],
});
