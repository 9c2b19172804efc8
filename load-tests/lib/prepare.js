// The users, products and campaigns of a run, created through the operators' API under names unique to the run, so that a scenario
// can run against the same deployment again and again.

import { operator, unmeasured } from './api.js';

const created = (op, answer) => {
    if (!answer.ok) throw new Error(`${op} answered ${answer.outcome}: the run can't be prepared`);
    return answer.body;
};

/** A name for everything that this run creates; also a valid product category. */
export const newRun = () => `LT_${Date.now().toString(36)}_${Math.random().toString(36).slice(2, 6)}`.toUpperCase();

/** Creates `count` users with a `balance`. Returns the first of their consecutive ids. */
export function users(run, count, balance = 0) {
    const op = 'POST admin users';
    const body = { count, balance, namePrefix: `${run}-` };
    return created(op, operator(op, 'POST', '/admin/v1/users/bulk', body, { timeout: '600s' })).firstUserId;
}

/** `terms`: the window and the limit of the product. */
export function product(run, name, price, stock, terms = {}) {
    const op = 'POST admin product';
    const body = { productName: `${name} (${run})`, price, stockQuantity: stock, category: run, ...terms };
    const { productId } = created(op, operator(op, 'POST', '/admin/v1/products', body));
    return { id: productId, name, price, stock };
}

/** Brings a product, or a user, in again under its id: nothing changes but the name. */
export function putProduct(run, { id, name, price, stock }, version) {
    const body = { productName: `${name}, ${version} (${run})`, price, stockQuantity: stock, category: run };
    operator('PUT admin product', 'PUT', `/admin/v1/products/${id}`, body, { allow: ['REQUEST_IN_PROGRESS'] });
}
export function putUser(run, id, version) {
    operator('PUT admin user', 'PUT', `/admin/v1/users/${id}`, { userName: `${run}-${id}, ${version}` });
}

/** `conditions`: those of the coupon. */
export function campaign(run, name, total, discountType = 'FIXED', discountAmount = 5000, conditions = {}) {
    const op = 'POST admin campaign';
    // 30 days ahead, so that the campaign is open in any time zone.
    const expiredAt = new Date(Date.now() + 30 * 86400e3).toISOString().slice(0, 19);
    const body = { couponCode: `${name}_${run}`, discountType, discountAmount, totalQuantity: total, expiredAt, ...conditions };
    const { couponId } = created(op, operator(op, 'POST', '/admin/v1/coupons', body));
    return { id: couponId, name, total };
}

/** A wall-clock time of the deployment, in milliseconds as if it were UTC, as its API spells it. */
export const local = (at) => new Date(at).toISOString().slice(0, 19);

/** The length of the deployment's holds in seconds, and its wall clock: read from an order that is cancelled at once. `at`: this
 * machine's clock when the wall clock was `since` or up to a second later. */
export function probe(user, product) {
    const order = { userId: user, orderProducts: [{ productId: product.id, quantity: 1 }] };
    const { orderId } = created('POST order', unmeasured('POST order', 'POST', '/api/v1/orders', order));
    const at = Date.now();
    const path = `/api/v1/orders/${orderId}`;
    const cancelled = created('POST cancel', unmeasured('POST cancel', 'POST', `${path}/cancel`, { userId: user }));
    const hold = Date.parse(`${cancelled.expiresAt}Z`) - Date.parse(`${cancelled.orderedAt}Z`);
    return { hold: Math.round(hold / 1000), since: cancelled.orderedAt, at };
}
