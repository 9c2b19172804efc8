// What a run brings along, made through the operators' API under names that no other run has, so that a scenario can be run
// against the same deployment again and again.

import { operator, quietly } from './api.js';

const made = (op, answer) => {
    if (!answer.ok) throw new Error(`${op} answered ${answer.outcome}: nothing can be prepared`);
    return answer.body;
};

/** A name for everything of this run; also a legal product category. */
export const newRun = () => `LT_${Date.now().toString(36)}_${Math.random().toString(36).slice(2, 6)}`.toUpperCase();

/** `count` users with a `balance`: the first of consecutive ids. */
export function users(run, count, balance = 0) {
    const op = 'POST admin users';
    const body = { count, balance, namePrefix: `${run}-` };
    return made(op, operator(op, 'POST', '/admin/v1/users/bulk', body, { timeout: '600s' })).firstUserId;
}

export function product(run, name, price, stock) {
    const op = 'POST admin product';
    const body = { productName: `${name} (${run})`, price, stockQuantity: stock, category: run };
    const { productId } = made(op, operator(op, 'POST', '/admin/v1/products', body));
    return { id: productId, name, price, stock };
}

export function campaign(run, name, total, discountType = 'FIXED', discountAmount = 5000) {
    const op = 'POST admin campaign';
    // In any time zone.
    const expiredAt = new Date(Date.now() + 30 * 86400e3).toISOString().slice(0, 19);
    const body = { couponCode: `${name}_${run}`, discountType, discountAmount, totalQuantity: total, expiredAt };
    const { couponId } = made(op, operator(op, 'POST', '/admin/v1/coupons', body));
    return { id: couponId, name, total };
}

/** How long the deployment's holds last, and its clock: told by an order that is cancelled at once. */
export function probe(user, product) {
    const order = { userId: user, orderProducts: [{ productId: product.id, quantity: 1 }] };
    const { orderId } = made('POST order', quietly('POST order', 'POST', '/api/v1/orders', order));
    const path = `/api/v1/orders/${orderId}`;
    const cancelled = made('POST cancel', quietly('POST cancel', 'POST', `${path}/cancel`, { userId: user }));
    const hold = Date.parse(`${cancelled.expiresAt}Z`) - Date.parse(`${cancelled.orderedAt}Z`);
    return { hold: Math.round(hold / 1000), since: cancelled.orderedAt };
}
