// The end of every run: waits for holds to end and the outbox to drain, compares the acknowledged writes with the recorded state,
// and has the service's own audit recompute every invariant.

import { sleep } from 'k6';
import { Counter, Gauge } from 'k6/metrics';
import { operator, unmeasured, readAll } from './api.js';
import { option } from './options.js';
import { acknowledged } from './shop.js';
import { recordLag, recordRemaining, setWatched } from './watch.js';

const audits = new Counter('audits');
const balanced = new Counter('audit_balanced');
const stuck = new Counter('outbox_stuck');
const missing = new Counter('units_missing');
const oversold = new Counter('units_oversold');
const holdsLeft = new Counter('holds_left');
// For the report: one sample per check and per entry of an account.
const auditCheck = new Gauge('audit_check');
const account = new Gauge('account');

// Seconds. Holds that last longer are cancelled at the end of a run instead of awaited.
const EXPIRY_WAIT = option('EXPIRY_WAIT', 60);
// Seconds without progress after which the outbox counts as stuck.
const DRAIN_TIMEOUT = option('DRAIN_TIMEOUT', 60, { min: 1 });

/** Waits until PostgreSQL has every decision, for as long as the projection makes progress. */
export function drain() {
    let last = -1;
    let since = Date.now();
    while (Date.now() - since < DRAIN_TIMEOUT * 1000) {
        const projection = recordLag();
        if (projection && projection.lagEvents === 0) return;
        const position = projection ? projection.partitions.reduce((sum, partition) => sum + partition.projectedSeq, 0) : last;
        if (position !== last) [last, since] = [position, Date.now()];
        sleep(0.5);
    }
    console.error(`the outbox has not moved for ${DRAIN_TIMEOUT} s`);
    stuck.add(1);
}

// The listing of orders ends after so many pages in a row with older orders only: ids follow time only within a partition.
const MAX_OLDER_PAGES = 10;

/** The orders with a line of `products` placed since `since` (the deployment's wall clock), optionally of one `status`. */
function ordersOf(products, since, status) {
    const ours = new Set(products.map(({ id }) => id));
    const found = new Map();
    const filter = status ? `&status=${status}` : '';
    for (let page = 0, older = 0; page <= 10000 && older < MAX_OLDER_PAGES; page++) {
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

/** Waits for abandoned orders to expire. Cancels them where holds last longer than EXPIRY_WAIT. */
function endHolds({ products, hold, since }) {
    const pending = () => ordersOf(products, since, 'PENDING');
    let left = pending();
    if (left.length > 0 && hold > EXPIRY_WAIT) {
        console.warn(`holds last ${hold} s: cancelling ${left.length} abandoned orders instead of waiting`);
        for (const { orderId, userId } of left) {
            const allow = ['ORDER_ALREADY_CLOSED'];
            unmeasured('POST cancel', 'POST', `/api/v1/orders/${orderId}/cancel`, { userId }, { allow });
        }
        drain();
        left = pending();
    }
    const deadline = Date.now() + (Math.min(hold, EXPIRY_WAIT) + 30) * 1000;
    while (left.length > 0 && Date.now() < deadline) {
        recordRemaining();
        sleep(1);
        left = pending();
    }
    holdsLeft.add(left.length);
    recordRemaining();
}

/** The refunded units of a product that stay off sale. */
function unitsOffSale(product) {
    const { ok, body } = operator('GET admin product', 'GET', `/admin/v1/products/${product}`);
    return ok ? body.quarantinedQuantity || 0 : 0;
}

/** Checks stock = on sale + held + sold + off sale for each product, and subtracts the recorded orders from the acknowledged ones. */
function reconcileProducts({ products, since }, inspect) {
    const orders = ordersOf(products, since);
    inspect(orders);
    const accounts = new Map(products.map(({ id }) => [id, { sold: 0, held: 0 }]));
    // What was not refunded.
    const unitsOf = ({ quantity, refundedQuantity }) => quantity - (refundedQuantity || 0);
    const addLines = (order, kind) => {
        for (const line of order.orderProducts) {
            const product = accounts.get(line.productId);
            if (product) product[kind] += unitsOf(line);
        }
    };
    const paid = orders.filter(({ orderStatus }) => orderStatus === 'PAID');
    paid.forEach((order) => addLines(order, 'sold'));
    orders.filter(({ orderStatus }) => orderStatus === 'PENDING').forEach((order) => addLines(order, 'held'));

    const onSale = readAll('GET product', products.map(({ id }) => `/api/v1/products/${id}`));
    products.forEach(({ id, name, stock }, at) => {
        const { sold, held } = accounts.get(id);
        const left = onSale[at] ? onSale[at].stockQuantity : NaN;
        const offSale = unitsOffSale(id);
        missing.add(Number.isNaN(left) ? stock : Math.abs(stock - left - held - sold - offSale));
        acknowledged.add(-offSale, { kind: 'units off sale' });
        oversold.add(Math.max(0, sold + held - stock));
        recordAccount('product', name, { total: stock, left, held, gone: sold });
    });
    const sum = (value) => paid.reduce((total, order) => total + value(order), 0);
    acknowledged.add(-paid.length, { kind: 'paid orders' });
    acknowledged.add(-sum((order) => order.orderProducts.reduce((units, line) => units + unitsOf(line), 0)), { kind: 'units' });
    acknowledged.add(-sum((order) => order.finalPrice - (order.refundedPrice || 0)), { kind: 'won' });
    account.add(paid.length, { kind: 'orders', name: 'paid orders', entry: 'count' });
    const expired = orders.filter(({ closeReason }) => closeReason === 'EXPIRED').length;
    account.add(expired, { kind: 'orders', name: 'holds that expired', entry: 'count' });
}

function recordAccount(kind, name, entries) {
    for (const [entry, value] of Object.entries(entries)) {
        if (!Number.isNaN(value)) account.add(value, { kind, name, entry });
    }
}

/** Checks total = left + issued for each campaign, and subtracts the issued coupons from the acknowledged ones. */
function reconcileCampaigns(campaigns) {
    for (const { id, name, total } of campaigns) {
        const { body } = operator('GET admin campaign', 'GET', `/admin/v1/coupons/${id}`);
        const { issuedQuantity: issued, remainingQuantity: left } = body || {};
        if (issued === undefined) continue;
        missing.add(Math.abs(total - left - issued));
        oversold.add(Math.max(0, issued - total));
        acknowledged.add(-issued, { kind: 'coupons' });
        recordAccount('campaign', name, { total, left, held: 0, gone: issued });
    }
}

function audit() {
    // The service runs one audit at a time and refuses a second.
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

/** Reconciles a run; the teardown of every scenario calls it. `inspect(orders)` gets the recorded orders of the products. */
export function reconcile({ products = [], campaigns = [], hold = 0, since = '' }, inspect = () => {}) {
    setWatched({ products, campaigns });
    drain();
    if (products.length > 0) {
        endHolds({ products, hold, since });
        drain();
        reconcileProducts({ products, since }, inspect);
    }
    reconcileCampaigns(campaigns);
    audit();
}
