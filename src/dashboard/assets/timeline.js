// The timeline of a user or an order.

import { read } from './api.js';
import { errorText, openSheet } from './dialogs.js';
import { h } from './dom.js';
import { has, number, readIso, t, won } from './i18n.js';
import { isRefundable, openRefund } from './refund.js';

const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d/;
const MONEY = new Set(['price', 'totalPrice', 'discountPrice', 'finalPrice', 'refundedPrice', 'amount', 'balance', 'before_balance', 'after_balance']);

const name = (key) => (has(`field.${key}`) ? t(`field.${key}`) : key);

function value(key, it) {
    if (it === null || it === undefined) return '–';
    if (typeof it === 'number') return MONEY.has(key) ? won(it) : /Id$|No$|^seq$/.test(key) ? String(it) : number(it);
    if (typeof it === 'boolean') return it ? '✓' : '✗';
    if (typeof it === 'string') return ISO.test(it) ? readIso(it) : it;
    if (Array.isArray(it)) return it.map((inner) => value(key, inner)).join(', ');
    return Object.entries(it).map(([inner, that]) => `${name(inner)} ${value(inner, that)}`).join(' · ');
}

const plain = (it) => it === null || typeof it !== 'object';

function facts(entries) {
    return h('dl', { class: 'timeline-facts' }, ...entries.map(([key, it]) => h('div', {}, h('dt', { text: name(key) }), h('dd', { text: value(key, it) }))));
}

function list(key, rows) {
    if (rows.length === 0) return h('p', { class: 'sub', text: t('none') });
    if (rows.every(plain)) return h('p', { text: rows.map((row) => value(key, row)).join(', ') });
    // Columns without any value are left out.
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row).filter((column) => row[column] !== null)))];
    return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': name(key) },
        h('table', { class: 'records' },
            h('caption', { class: 'unseen', text: name(key) }),
            h('thead', {}, h('tr', {}, ...columns.map((column) => h('th', { scope: 'col', text: name(column) })))),
            h('tbody', {}, ...rows.map((row) => h('tr', {}, ...columns.map((column) => h('td', { class: ISO.test(row[column]) ? 'when' : plain(row[column] ?? null) ? null : 'nested', text: row[column] === undefined ? '' : value(column, row[column]) })))))));
}

// Renders a JSON object by its shape. A field without a message appears under its own name.
function record(it, title, level) {
    const entries = Object.entries(it);
    const simple = entries.filter(([, inner]) => plain(inner));
    const box = h('section', {}, h(`h${Math.min(level, 6)}`, { text: title }));
    if (simple.length > 0) box.append(facts(simple));
    for (const [key, inner] of entries) {
        if (plain(inner)) continue;
        if (Array.isArray(inner)) box.append(h(`h${Math.min(level + 1, 6)}`, { text: name(key) }), list(key, inner));
        else box.append(record(inner, name(key), level + 1));
    }
    return box;
}

const eventName = (event) => (has(`event.${event}`) ? t(`event.${event}`) : event);

// The service lists the events of an order. Those of a user derive from entries, orders and coupons.
function eventsOf(timeline) {
    if (Array.isArray(timeline.events)) return timeline.events.map(({ at, event, detail }) => ({ at, text: eventName(event), more: detail ?? '' }));
    const orders = new Map([...(timeline.orders ?? []), ...(timeline.openOrders ?? [])].map((order) => [order.orderId, order]));
    const order = (id) => t('timeline.order.of', { id });
    const events = [
        ...(timeline.entries ?? []).map((it) => ({ at: it.createdAt, text: eventName('BALANCE_CHANGED'), more: `${it.transactionType} ${won(it.amount)} → ${won(it.after_balance)}` })),
        ...[...orders.values()].flatMap((it) => [
            { at: it.orderedAt, text: eventName('ORDER_PLACED'), more: `${order(it.orderId)} · ${won(it.finalPrice)}` },
            { at: it.paidAt, text: eventName('ORDER_PAID'), more: order(it.orderId) },
            { at: it.closedAt, text: eventName('ORDER_CLOSED'), more: [order(it.orderId), it.closeReason].filter(Boolean).join(' · ') },
        ]),
        ...(timeline.coupons ?? []).flatMap((it) => [
            { at: it.createdAt, text: eventName('COUPON_TAKEN'), more: it.couponCode },
            { at: it.usedAt, text: eventName('COUPON_USED'), more: it.couponCode },
        ]),
    ];
    return events.filter(({ at }) => typeof at === 'string').sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
}

function render(timeline, title, reload) {
    const { events: _, ...rest } = timeline;
    const events = eventsOf(timeline);
    const order = timeline.order;
    return [
        h('header', { class: 'timeline-head' }, h('h3', { text: title }),
            order && isRefundable(order) ? h('button', { class: 'action', type: 'button', 'data-needs': 'admin', 'data-part': 'refund', text: t('refund.submit'), onclick: () => openRefund(order, reload) }) : null),
        ...(events.length === 0 ? [] : [
            h('h4', { text: t('timeline.events') }),
            h('ol', { class: 'timeline' }, ...events.map(({ at, text, more }) => h('li', {}, h('time', { text: readIso(at) }), h('span', { text }), h('span', { class: 'sub', text: more })))),
        ]),
        record(rest, t('timeline.facts'), 4),
    ];
}

/// Opens the search for a user or an order; with a `kind` and an `id`, searches at once.
export function openTimelineSearch({ kind: wanted = 'order', id: known = null } = {}) {
    openSheet(t('timeline.title'), (body) => {
        const choice = (kind, checked) => h('label', { class: 'choice' }, h('input', { type: 'radio', name: 'kind', value: kind, checked }), h('span', { text: t(`timeline.${kind}`) }));
        const input = h('input', { id: 'timeline-id', name: 'number', type: 'text', inputmode: 'numeric', pattern: '[0-9]{1,16}', required: true, autocomplete: 'off' });
        const found = h('div', { class: 'timeline-result', tabindex: '-1' });
        const form = h('form', { class: 'search' },
            h('fieldset', {}, h('legend', { class: 'unseen', text: t('timeline.title') }), choice('order', wanted === 'order'), choice('user', wanted === 'user')),
            h('label', { for: 'timeline-id', class: 'unseen', text: t('timeline.number') }), input,
            h('button', { class: 'primary', type: 'submit', text: t('timeline.search') }));
        let requests = 0;
        async function search(kind, id, refunded = null) {
            const request = (requests += 1);
            found.replaceChildren(h('p', { class: 'sub', text: t('loading') }));
            try {
                const timeline = await read(`/${kind}s/${encodeURIComponent(id)}/timeline`);
                if (request !== requests) return;
                const result = refunded === null ? null : h('p', { class: 'refunded', text: t('refund.done', { amount: won(refunded), id }) });
                found.replaceChildren(...render(timeline, t(`timeline.${kind}.of`, { id }), (amount) => search(kind, id, amount)));
                if (result) found.firstChild.after(result);
            } catch (error) {
                if (request === requests) found.replaceChildren(h('p', { class: 'error', text: errorText(error) }));
            }
            found.focus();
        }
        form.addEventListener('submit', (event) => {
            event.preventDefault();
            search(form.elements.kind.value, input.value.trim());
        });
        body.append(form, found);
        input.placeholder = t('timeline.number');
        input.focus();
        if (known !== null) {
            input.value = String(known);
            form.requestSubmit();
        }
    });
}
