// The end of every run: holds end, the outbox empties, what customers were told is compared with what the books have, and
// the service's own audit recomputes every law.

import { sleep } from 'k6';
import { Counter, Gauge } from 'k6/metrics';
import { operator, quietly, readAll } from './api.js';
import { knob } from './knobs.js';
import { told } from './shop.js';
import { seeLag, seeRemaining, watching } from './watch.js';

const audits = new Counter('audits');
const balanced = new Counter('books_balanced');
const stuck = new Counter('outbox_stuck');
const missing = new Counter('units_missing');
const oversold = new Counter('units_oversold');
const holdsLeft = new Counter('holds_left');
// For the report: one sample each.
const auditCheck = new Gauge('audit_check');
const account = new Gauge('account');

// Longer holds than this are not waited for but cancelled.
const EXPIRY_WAIT = knob('EXPIRY_WAIT', 60);
// Without any progress for so long, the outbox counts as stuck.
const DRAIN_PATIENCE = knob('DRAIN_PATIENCE', 60, { least: 1 });

/** Until PostgreSQL has everything, for as long as it gets on. */
export function drain() {
    let last = -1;
    let since = Date.now();
    while (Date.now() - since < DRAIN_PATIENCE * 1000) {
        const projection = seeLag();
        if (projection && projection.lagEvents === 0) return;
        const position = projection ? projection.partitions.reduce((sum, one) => sum + one.projectedSeq, 0) : last;
        if (position !== last) [last, since] = [position, Date.now()];
        sleep(0.5);
    }
    console.error(`the outbox has not moved for ${DRAIN_PATIENCE} s`);
    stuck.add(1);
}

// So many pages of older orders in a row, and there are no more of ours: ids are in the order of time only within a partition.
const OLDER_PAGES = 10;

/** The orders of one of `products` since the time `since` (the deployment's wall clock); all, or those of a status. */
function ordersOf(products, since, status) {
    const ours = new Set(products.map(({ id }) => id));
    const found = new Map();
    const filter = status ? `&status=${status}` : '';
    for (let page = 0, older = 0; page <= 10000 && older < OLDER_PAGES; page++) {
        const answer = operator('GET admin orders', 'GET', `/admin/v1/orders?page=${page}&size=100${filter}`);
        if (!answer.ok) break;
        const { content } = answer.body;
        for (const order of content) {
            if (order.orderProducts.some(({ productId }) => ours.has(productId))) found.set(order.orderId, order);
        }
        if (content.length < 100) break;
        older = content.every(({ orderedAt }) => orderedAt < since) ? older + 1 : 0;
    }
    return [...found.values()];
}

/** Abandoned orders expire by themselves, unless that takes too long here: then they are cancelled. */
function endHolds({ products, hold, since }) {
    const pending = () => ordersOf(products, since, 'PENDING');
    let left = pending();
    if (left.length > 0 && hold > EXPIRY_WAIT) {
        console.warn(`holds last ${hold} s here: ${left.length} abandoned orders are cancelled rather than waited for`);
        for (const { orderId, userId } of left) {
            const allow = ['ORDER_ALREADY_CLOSED'];
            quietly('POST cancel', 'POST', `/api/v1/orders/${orderId}/cancel`, { userId }, { allow });
        }
        drain();
        left = pending();
    }
    const deadline = Date.now() + (Math.min(hold, EXPIRY_WAIT) + 30) * 1000;
    while (left.length > 0 && Date.now() < deadline) {
        seeRemaining();
        sleep(1);
        left = pending();
    }
    holdsLeft.add(left.length);
    seeRemaining();
}

/** Stock = on sale + held + sold, for each product; and what was sold is what customers were told. */
function settleProducts({ products, since }) {
    const orders = ordersOf(products, since);
    const accounts = new Map(products.map(({ id }) => [id, { sold: 0, held: 0 }]));
    const bought = (order, kind) => {
        for (const { productId, quantity } of order.orderProducts) {
            const product = accounts.get(productId);
            if (product) product[kind] += quantity;
        }
    };
    const paid = orders.filter(({ orderStatus }) => orderStatus === 'PAID');
    paid.forEach((order) => bought(order, 'sold'));
    orders.filter(({ orderStatus }) => orderStatus === 'PENDING').forEach((order) => bought(order, 'held'));

    const onSale = readAll('GET product', products.map(({ id }) => `/api/v1/products/${id}`));
    products.forEach(({ id, name, stock }, at) => {
        const { sold, held } = accounts.get(id);
        const left = onSale[at] ? onSale[at].stockQuantity : NaN;
        missing.add(Number.isNaN(left) ? stock : Math.abs(stock - left - held - sold));
        oversold.add(Math.max(0, sold + held - stock));
        keepAccount('product', name, { total: stock, left, held, gone: sold });
    });
    const sum = (value) => paid.reduce((total, order) => total + value(order), 0);
    told.add(-paid.length, { what: 'paid orders' });
    told.add(-sum((order) => order.orderProducts.reduce((units, line) => units + line.quantity, 0)), { what: 'units' });
    told.add(-sum((order) => order.finalPrice), { what: 'won' });
    account.add(paid.length, { kind: 'orders', name: 'paid orders', entry: 'count' });
    const expired = orders.filter(({ closeReason }) => closeReason === 'EXPIRED').length;
    account.add(expired, { kind: 'orders', name: 'holds that expired', entry: 'count' });
}

function keepAccount(kind, name, entries) {
    for (const [entry, value] of Object.entries(entries)) {
        if (!Number.isNaN(value)) account.add(value, { kind, name, entry });
    }
}

/** Total = left + issued, for each campaign; and what was issued is what customers were told. */
function settleCampaigns(campaigns) {
    for (const { id, name, total } of campaigns) {
        const { body } = operator('GET admin campaign', 'GET', `/admin/v1/coupons/${id}`);
        const { issuedQuantity: issued, remainingQuantity: left } = body || {};
        if (issued === undefined) continue;
        missing.add(Math.abs(total - left - issued));
        oversold.add(Math.max(0, issued - total));
        told.add(-issued, { what: 'coupons' });
        keepAccount('campaign', name, { total, left, held: 0, gone: issued });
    }
}

function audit() {
    // One audit at a time: another may be at work.
    for (let attempt = 0; attempt < 120; attempt++) {
        const answer = operator('GET admin audit', 'GET', '/admin/v1/audit', undefined, {
            allow: ['REQUEST_IN_PROGRESS'],
            timeout: '600s',
        });
        if (answer.ok) {
            audits.add(1);
            for (const { name, ok, detail } of answer.body.checks) auditCheck.add(ok ? 1 : 0, { check: name, detail });
            if (answer.body.balanced) balanced.add(1);
            else console.error('THE BOOKS DO NOT BALANCE');
            return;
        }
        sleep(1);
    }
}

/** The whole of it: for the teardown of every scenario. */
export function settle({ products = [], campaigns = [], hold = 0, since = '' }) {
    watching({ products, campaigns });
    drain();
    if (products.length > 0) {
        endHolds({ products, hold, since });
        drain();
        settleProducts({ products, since });
    }
    settleCampaigns(campaigns);
    audit();
}
