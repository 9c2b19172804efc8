// The customers of an ordinary day: their actions and their proportions. Each VU has its own users, so that a read can be compared
// with the last acknowledged write of the same user.

import { sleep } from 'k6';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { option, share } from './options.js';
import * as prepare from './prepare.js';
import { catalog, campaigns, cancel, chance, charge, coupons, history, order, pay, pick, place, popular, product } from './shop.js';
import { balance, takeCoupon } from './shop.js';

const PRODUCTS = option('PRODUCTS', 40, { min: 5, max: 500 });
const STOCK = option('STOCK', 500, { min: 1 });
const COUPONS = option('COUPONS', 300, { min: 1 });
const USERS = option('USERS', 4000, { min: 1 });
const THINK = option('THINK_MS', 400) / 1000;
const AGAIN = share('REPEAT', 0.1);
export const MAX_VUS = option('MAX_VUS', 400, { min: 1 });
// The VUs of the watcher share the numbering.
const USERS_PER_VU = Math.max(1, Math.floor(USERS / (MAX_VUS + 10)));

const stale = new Counter('stale_reads');

const SCARCE = Math.max(1, Math.floor(STOCK / 20));

export function prepareDay() {
    const run = prepare.newRun();
    const firstUser = prepare.users(run, USERS_PER_VU * (MAX_VUS + 10), 1000000);
    const products = Array.from({ length: PRODUCTS }, (_, at) => {
        // Every tenth product is scarce.
        const stock = at % 10 === 0 ? SCARCE : STOCK;
        return prepare.product(run, `item ${at + 1}`, 3000 + 1700 * at, stock);
    });
    const three = [
        prepare.campaign(run, 'fixed', COUPONS, 'FIXED', 2000),
        prepare.campaign(run, 'tenth', COUPONS, 'PERCENTAGE', 10),
        prepare.campaign(run, 'rare', Math.max(1, Math.floor(COUPONS / 10)), 'PERCENTAGE', 50),
    ];
    return { run, firstUser, products, campaigns: three, ...prepare.probe(firstUser, products[1]) };
}

const think = () => sleep(THINK * (0.5 + Math.random()));

/** A product; the first are the most likely. */
const anyProduct = ({ products }) => products[Math.floor(products.length * Math.random() ** 2)];

/** The unused coupons of this VU's users, by user. */
const unused = new Map();

function lookAround({ products, run }) {
    popular();
    catalog(run);
    think();
    for (let looked = 0; looked < 2; looked++) {
        product(anyProduct({ products }).id);
        think();
    }
    campaigns();
}

function chargeUp(data, user) {
    const before = balance(user);
    const amount = 1000 * (1 + Math.floor(Math.random() * 100));
    const charged = charge(user, amount, { again: AGAIN });
    const after = balance(user);
    if (!before.ok || !charged.ok || !after.ok) return;
    if (charged.body.balance !== before.body.balance + amount) stale.add(1, { op: 'PUT balance' });
    if (after.body.balance !== charged.body.balance) stale.add(1, { op: 'GET balance' });
}

function collect(data, user) {
    campaigns();
    think();
    const { id } = pick(data.campaigns);
    const taken = takeCoupon(user, id, { again: AGAIN });
    const mine = coupons(user);
    if (!taken.ok || !mine.ok) return;
    if (!mine.body.some(({ couponId, issueNo }) => couponId === id && issueNo === taken.body.issueNo)) {
        stale.add(1, { op: 'GET coupons' });
    }
    unused.set(user, [...(unused.get(user) || []), id]);
}

function buy(data, user, after) {
    const lines = new Map();
    for (let line = 0; line < 1 + Math.floor(Math.random() * 3); line++) {
        lines.set(anyProduct(data).id, 1 + Math.floor(Math.random() * 2));
    }
    product(lines.keys().next().value);
    think();
    const coupon = (unused.get(user) || []).pop();
    const placed = place(user, [...lines], { coupon, allow: ['INSUFFICIENT_BALANCE'], again: AGAIN });
    if (!placed.ok) {
        if (coupon) unused.get(user).push(coupon);
        return;
    }
    think();
    const expected = after(placed.order);
    if (!expected) return;
    const seen = order(placed.order.id, user);
    if (seen.ok && seen.body.orderStatus !== expected) stale.add(1, { op: 'GET order' });
}

const buyAndPay = (data, user) =>
    buy(data, user, (order) => pay(order, data.hold, { again: AGAIN }).ok && 'PAID');

const buyAndCancel = (data, user) =>
    buy(data, user, (order) => cancel(order, data.hold, { again: AGAIN }).ok && 'CANCELLED');

const buyAndAbandon = (data, user) => buy(data, user, () => null);

const buyAndReturn = (data, user) =>
    buy(data, user, (order) => {
        if (!pay(order, data.hold).ok) return null;
        think();
        return cancel(order, data.hold, { paid: true, again: AGAIN }).ok && 'CANCELLED';
    });

function lookBack(data, user) {
    const now = balance(user);
    const entries = history(user);
    coupons(user);
    if (!now.ok || !entries.ok) return;
    let last;
    for (const entry of entries.body) {
        if (last && entry.before_balance !== last.after_balance) stale.add(1, { op: 'GET history' });
        last = entry;
    }
    if (last && last.after_balance !== now.body.balance) stale.add(1, { op: 'GET history' });
}

const HABITS = [
    [0.4, lookAround],
    [0.12, chargeUp],
    [0.12, collect],
    [0.2, buyAndPay],
    [0.03, buyAndCancel],
    [0.03, buyAndAbandon],
    [0.03, buyAndReturn],
    [0.07, lookBack],
];

/** The shop's other system brings a product and a user in again, as it does all day. */
export function bringIn({ run, firstUser, products }) {
    const version = exec.scenario.iterationInTest;
    prepare.putProduct(run, pick(products), version);
    prepare.putUser(run, firstUser + Math.floor(Math.random() * USERS_PER_VU * (MAX_VUS + 10)), version);
}

/** One customer's visit. */
export function visit(data) {
    const own = (exec.vu.idInTest - 1) * USERS_PER_VU;
    const user = data.firstUser + own + Math.floor(Math.random() * USERS_PER_VU);
    let choice = Math.random();
    for (const [share, habit] of HABITS) {
        choice -= share;
        if (choice < 0) return habit(data, user);
    }
    return lookAround(data);
}
