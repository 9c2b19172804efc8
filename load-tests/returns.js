// The days after a sale: customers send parts of their orders back, and operators take returns that are not sold again. Every won and
// every unit is where it belongs after any sequence of parts.

import exec from 'k6/execution';
import { sleep } from 'k6';
import { Counter } from 'k6/metrics';
import { reconcile } from './lib/reconcile.js';
import { duration, option, share } from './lib/options.js';
import * as prepare from './lib/prepare.js';
import * as rules from './lib/rules.js';
import * as shop from './lib/shop.js';
import { plural, summarize } from './lib/summary.js';
import { watcher } from './lib/watch.js';

export { watch } from './lib/watch.js';

const PRODUCTS = option('PRODUCTS', 6, { min: 3, max: 100 });
const STOCK = option('STOCK', 20000, { min: 1 });
const COUPONS = option('COUPONS', 100000, { min: 1 });
const LIMIT = option('LIMIT', 3, { min: 1, max: 100 });
const RATE = option('RATE', 15, { min: 1 });
const DURATION = duration('DURATION', 30);
const WHOLE = share('WHOLE', 0.4);
const OPERATOR = share('OPERATOR', 0.4);
const OFF_SALE = share('OFF_SALE', 0.5);
const TWICE = share('TWICE', 0.2);
const REPEAT = share('REPEAT', 0.1);
const THINK = option('THINK_MS', 100) / 1000;
const MAX_VUS = option('MAX_VUS', 400, { min: 1 });
const USERS = RATE * DURATION;
const BALANCE = 10000000;

const returned = new Counter('units_returned');
const wholeOrders = new Counter('orders_returned_whole');
const amountsWrong = new Counter('refunds_wrong');
const twice = new Counter('refunded_twice');
const tooMuch = new Counter('refunded_too_much');
const balancesWrong = new Counter('balances_wrong');
const limitsWrong = new Counter('limits_wrong');

const RULES = [
    ...rules.orders,
    ...rules.refunds,
    ...rules.coupons,
    ...rules.common(USERS),
    rules.none('refunds_wrong', 'each part is its share of what was paid; all parts together are what was paid'),
    rules.none('refunded_twice', 'of two refunds of the same units one is refused'),
    rules.none('refunded_too_much', 'more than was bought is refused'),
    rules.none('balances_wrong', 'every customer has the money of what came back, to the won'),
    rules.none('limits_wrong', 'a limit counts what is left of each order'),
    rules.none('replay_differs', 'the reply to a repeat has the same bytes'),
    rules.rule('correctness', 'units_returned', 'count>0', 'units came back'),
];

export const options = rules.options(RULES, {
    days: {
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
    const firstUser = prepare.users(run, USERS + 1, BALANCE);
    // Prices whose shares need rounding.
    const products = Array.from({ length: PRODUCTS }, (_, at) => prepare.product(run, `goods ${at + 1}`, 9973 + 3331 * at, STOCK));
    const limited = prepare.product(run, 'limited', 33333, STOCK, { limitPerUser: LIMIT });
    const campaigns = [prepare.campaign(run, 'coupons', COUPONS, 'FIXED', 4999)];
    return { firstUser, limited, products: [...products, limited], campaigns, ...prepare.probe(firstUser + USERS, products[0]) };
}

const think = () => sleep(THINK * (0.5 + Math.random()));
const least = (a, b) => Math.min(a, b);

/** What is left of an order: `left` by product. Refunds a part, and checks its amount. */
function sendBack(order, parts, by) {
    const answer = shop.refund(order, parts, by);
    if (!answer.ok) return answer;
    for (const [product, quantity] of parts) {
        order.left.set(product, order.left.get(product) - quantity);
        order.value += order.prices.get(product) * quantity;
        returned.add(quantity);
    }
    const whole = [...order.left.values()].every((left) => left === 0);
    const share = whole ? order.price : Math.floor((order.price * order.value) / order.total);
    const closed = answer.body.orderStatus === 'CANCELLED' && answer.body.closeReason === 'REFUNDED';
    if (answer.body.refundedPrice !== share || closed !== whole) amountsWrong.add(1);
    if (whole) wholeOrders.add(1);
    return answer;
}

const anyPart = (order) => {
    const [product, left] = shop.pick([...order.left].filter(([, units]) => units > 0));
    return [product, 1 + Math.floor(Math.random() * left)];
};

const anyone = () => (shop.chance(OPERATOR) ? { operator: { restock: !shop.chance(OFF_SALE) } } : {});

/** Two parallel refunds of all that is left of a line: one of them takes effect. */
function sendBackTwice(order) {
    const product = [...order.left].find(([, units]) => units > 0)[0];
    const units = order.left.get(product);
    const allow = ['INVALID_ORDER', 'ORDER_ALREADY_CLOSED', 'REQUEST_IN_PROGRESS'];
    const answers = shop.refundTwice(order, [[product, units]], { allow });
    const done = answers.filter(({ ok }) => ok).length;
    if (done !== 1) twice.add(1);
    if (done === 0) return;
    order.left.set(product, 0);
    order.value += order.prices.get(product) * units;
    returned.add(units);
    if ([...order.left.values()].every((left) => left === 0)) wholeOrders.add(1);
}

function buy(user, lines, coupon) {
    const answer = shop.checkout(user, lines.map(({ id, quantity }) => [id, quantity]), { coupon, allow: ['SOLD_OUT', 'INSUFFICIENT_STOCK'] });
    if (!answer.ok) return null;
    const { order } = answer;
    order.refunded = 0;
    order.value = 0;
    order.total = lines.reduce((sum, { price, quantity }) => sum + price * quantity, 0);
    order.left = new Map(lines.map(({ id, quantity }) => [id, quantity]));
    order.prices = new Map(lines.map(({ id, price }) => [id, price]));
    return order;
}

function returns(user, data) {
    const [campaign] = data.campaigns;
    const taken = shop.chance(0.5) && shop.takeCoupon(user, campaign.id);
    const goods = data.products.filter(({ id }) => id !== data.limited.id);
    const first = Math.floor(Math.random() * goods.length);
    const count = 1 + Math.floor(Math.random() * 3);
    const lines = Array.from({ length: least(count, goods.length) }, (_, at) => ({ ...goods[(first + at) % goods.length], quantity: 1 + Math.floor(Math.random() * 4) }));
    const order = buy(user, lines, taken && taken.ok ? campaign.id : undefined);
    if (!order) return 0;
    think();
    // One more than was bought.
    const [product, units] = [...order.left][0];
    if (shop.chance(0.2) && shop.refund(order, [[product, units + 1]], { allow: ['INVALID_ORDER'] }).ok) tooMuch.add(1);
    const everything = shop.chance(WHOLE);
    for (let part = 0; [...order.left.values()].some((left) => left > 0) && (everything || part < 2); part++) {
        if (shop.chance(TWICE)) sendBackTwice(order);
        else if (!sendBack(order, [anyPart(order)], { ...anyone(), again: REPEAT }).ok) break;
        think();
    }
    return order.price - order.refunded;
}

/** Buys up to the limit, sends one back, and buys one again. */
function atTheLimit(user, { limited }) {
    const order = buy(user, [{ ...limited, quantity: LIMIT }]);
    if (!order) return 0;
    const more = [[limited.id, 1]];
    const allow = ['PURCHASE_LIMIT_EXCEEDED', 'SOLD_OUT'];
    if (shop.checkout(user, more, { allow }).ok) limitsWrong.add(1);
    if (!sendBack(order, [[limited.id, 1]], anyone()).ok) return order.price;
    const again = shop.checkout(user, more, { allow });
    if (again.outcome === 'PURCHASE_LIMIT_EXCEEDED') limitsWrong.add(1);
    const spent = order.price - order.refunded + (again.ok ? again.order.price : 0);
    if (again.ok && shop.checkout(user, more, { allow }).ok) limitsWrong.add(1);
    return spent;
}

export function customer(data) {
    const { iterationInTest } = exec.scenario;
    if (iterationInTest >= USERS) return;
    const user = data.firstUser + iterationInTest;
    let spent = returns(user, data);
    if (shop.chance(0.3)) spent += atTheLimit(user, data);
    const { ok, body } = shop.balance(user);
    if (ok && body.balance !== BALANCE - spent) balancesWrong.add(1);
}

export function teardown(data) {
    reconcile(data);
}

export const handleSummary = summarize({
    name: 'returns',
    title: 'Returns',
    proves: 'Customers and operators refund parts of orders, some of which are not sold again: every won and every unit is where it belongs, after any sequence of parts.',
    rules: RULES,
    headline: (read) => [
        plural(read('units_returned'), 'unit returned', 'units returned'),
        plural(read('orders_returned_whole'), 'order came back whole', 'orders came back whole'),
        { ...plural(read('refunds_wrong') + read('balances_wrong'), 'won wrong', 'amounts wrong'), ok: read('refunds_wrong') + read('balances_wrong') === 0 },
        { ...plural(read('refunded_twice'), 'refunded twice', 'refunded twice'), ok: read('refunded_twice') === 0 },
        { ...plural(read('units_missing'), 'unaccounted for', 'unaccounted for'), ok: read('units_missing') === 0 },
    ],
});
