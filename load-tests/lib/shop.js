// The calls of a customer.
//
// `acknowledged_minus_recorded` counts every acknowledged write, by kind. The end of a run (reconcile.js) subtracts the recorded state.
// A lost, invented or repeated write leaves a count other than zero.

import { Counter } from 'k6/metrics';
import { atOnce, call, operatorHeaders, together } from './api.js';

export const acknowledged = new Counter('acknowledged_minus_recorded');
const repliesDiffer = new Counter('replay_differs');
const replays = new Counter('replays');

export const MAX_CHARGE = 100000;
const PAYMENT_TYPES = ['CARD', 'KAKAO_PAY', 'TOSS', 'BALANCE'];

export const pick = (list) => list[Math.floor(Math.random() * list.length)];
export const chance = (share) => Math.random() < share;

/** A new idempotency key. */
export const newKey = () => `lt-${Date.now().toString(36)}-${__VU}-${Math.random().toString(36).slice(2)}`;

/** A write. With the probability `again` it has an idempotency key and is sent twice, as after a lost reply: the second reply has to
 * have the same bytes and `Idempotent-Replayed`. */
function write(op, method, path, body, { again = 0, ...options }) {
    if (!again) return call(op, method, path, body, options);
    const key = newKey();
    const first = call(op, method, path, body, { ...options, key });
    if (first.ok && chance(again)) {
        const repeat = call(op, method, path, body, { ...options, key });
        replays.add(1);
        const same = repeat.replayed && repeat.status === first.status && repeat.text === first.text;
        if (!same) repliesDiffer.add(1, { op });
    }
    return first;
}

export const product = (id) => call('GET product', 'GET', `/api/v1/products/${id}`);
export const catalog = (category) => call('GET products', 'GET', `/api/v1/products?category=${category}&size=20`);
export const popular = () => call('GET popular', 'GET', '/api/v1/products/popular?sortBy=TODAY');
export const campaigns = () => call('GET campaigns', 'GET', '/api/v1/campaigns');
export const balance = (user) => call('GET balance', 'GET', `/api/v1/balances/${user}`);
export const history = (user) => call('GET history', 'GET', `/api/v1/balances/${user}/history?limit=50`);
export const coupons = (user) => call('GET coupons', 'GET', `/api/v1/coupons/${user}`);
export const order = (id, user) => call('GET order', 'GET', `/api/v1/orders/${id}?userId=${user}`);

export const charge = (user, amount, options = {}) =>
    write('PUT balance', 'PUT', `/api/v1/balances/${user}`, { amount }, options);

const ISSUE = ['POST coupon', 'POST', '/api/v1/coupons/issue'];
const NO_COUPON = ['COUPON_OUT_OF_STOCK', 'INVALID_COUPON'];

export const takeCoupon = (user, coupon, { allow = NO_COUPON, ...options } = {}) =>
    countCoupon(write(...ISSUE, { couponId: coupon, userId: user }, { allow, ...options }));

/** Two requests in parallel. */
export const takeCouponTwice = (user, coupon) =>
    atOnce(2, ...ISSUE, { couponId: coupon, userId: user }, { allow: NO_COUPON }).map(countCoupon);

function countCoupon(answer) {
    if (answer.ok) acknowledged.add(1, { kind: 'coupons' });
    return answer;
}

/** Places an order of `lines` ([product, quantity] pairs). `order` of the result is for `pay` and `cancel`. */
export function place(user, lines, { coupon, allow = [], ...options } = {}) {
    const body = { userId: user, orderProducts: lines.map(([productId, quantity]) => ({ productId, quantity })) };
    if (coupon) body.userCouponId = coupon;
    const refusals = ['SOLD_OUT', 'INSUFFICIENT_STOCK', ...allow];
    const answer = write('POST order', 'POST', '/api/v1/orders', body, { allow: refusals, ...options });
    const units = lines.reduce((sum, [, quantity]) => sum + quantity, 0);
    if (answer.ok) answer.order = { id: answer.body.orderId, user, price: answer.body.finalPrice, units, at: Date.now() };
    return answer;
}

const checkoutBody = (user, lines, coupon) => ({
    userId: user,
    orderProducts: lines.map(([productId, quantity]) => ({ productId, quantity })),
    payment: { paymentType: 'BALANCE' },
    ...(coupon ? { userCouponId: coupon } : {}),
});

function countCheckout(answer, user, lines) {
    const units = lines.reduce((sum, [, quantity]) => sum + quantity, 0);
    if (answer.ok) {
        answer.order = { id: answer.body.orderId, user, price: answer.body.finalPrice, units, at: Date.now(), lines };
        count(answer.order, 1);
    }
    return answer;
}

const CHECKOUT = ['POST checkout', 'POST', '/api/v1/orders'];

/** Places and pays an order of `lines` in one step. */
export function checkout(user, lines, { coupon, ...options } = {}) {
    const [op, method, path] = CHECKOUT;
    return countCheckout(write(op, method, path, checkoutBody(user, lines, coupon), options), user, lines);
}

/** One checkout for each of `orders` (lists of lines), in parallel. */
export const checkoutTogether = (user, orders, { coupon, ...options } = {}) =>
    together(orders.map((lines) => checkoutBody(user, lines, coupon)), ...CHECKOUT, options)
        .map((answer, at) => countCheckout(answer, user, orders[at]));

/** Whether the hold of `order` may have expired (after `hold` seconds), so that a refusal is expected. */
const overdue = (order, hold) => Date.now() - order.at > (hold - 3) * 1000;

function count(order, sign) {
    acknowledged.add(sign, { kind: 'paid orders' });
    acknowledged.add(sign * order.units, { kind: 'units' });
    acknowledged.add(sign * order.price, { kind: 'won' });
}

export function pay(order, hold, options = {}) {
    const body = { orderId: order.id, userId: order.user, paymentType: pick(PAYMENT_TYPES), amount: order.price };
    const allow = overdue(order, hold) ? ['INVALID_PAYMENT_REQUEST'] : [];
    const answer = write('POST payment', 'POST', '/api/v1/payments', body, { allow, ...options });
    if (answer.ok) count(order, 1);
    return answer;
}

/** Cancels `order`, or refunds it where it was `paid`. */
export function cancel(order, hold, { paid = false, ...options } = {}) {
    const path = `/api/v1/orders/${order.id}/cancel`;
    const allow = !paid && overdue(order, hold) ? ['ORDER_ALREADY_CLOSED'] : [];
    const answer = write('POST cancel', 'POST', path, { userId: order.user }, { allow, ...options });
    if (answer.ok && paid) count(order, -1);
    return answer;
}

const refundLines = (parts) => parts.map(([productId, quantity]) => ({ productId, quantity }));

/** The request that refunds `parts` ([product, quantity] pairs) of an order, by its user, or by an operator with `restock`. */
function refundRequest(order, parts, operator) {
    const lines = refundLines(parts);
    return operator
        ? ['POST refund', 'POST', `/admin/v1/orders/${order.id}/refund`, { lines, restock: operator.restock, reason: 'load test' }, operatorHeaders()]
        : ['POST return', 'POST', `/api/v1/orders/${order.id}/cancel`, { userId: order.user, lines }, {}];
}

/** Counts an acknowledged refund: `order.refunded` follows. */
function countRefund(order, parts, operator, answer) {
    if (!answer.ok) return answer;
    const units = parts.reduce((sum, [, quantity]) => sum + quantity, 0);
    answer.amount = answer.body.refundedPrice - order.refunded;
    order.refunded = answer.body.refundedPrice;
    acknowledged.add(-units, { kind: 'units' });
    acknowledged.add(-answer.amount, { kind: 'won' });
    if (answer.body.orderStatus === 'CANCELLED') acknowledged.add(-1, { kind: 'paid orders' });
    if (operator && !operator.restock) acknowledged.add(units, { kind: 'units off sale' });
    return answer;
}

/** Refunds a part of a paid order, which has `refunded` (won). */
export function refund(order, parts, { operator, ...options } = {}) {
    const [op, method, path, body, headers] = refundRequest(order, parts, operator);
    return countRefund(order, parts, operator, write(op, method, path, body, { ...options, headers }));
}

/** The same refund by the user twice, in parallel. */
export function refundTwice(order, parts, options) {
    const [op, method, path, body] = refundRequest(order, parts);
    return atOnce(2, op, method, path, body, options).map((answer) => countRefund(order, parts, undefined, answer));
}
