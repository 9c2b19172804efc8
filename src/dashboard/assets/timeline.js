// What is read rather than done: the story of a user or an order, and the log of operators' acts.

import { read } from './api.js';
import { explain, pages, sheet } from './dialogs.js';
import { h } from './dom.js';
import { has, number, readIso, t, won } from './i18n.js';

const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d/;
const MONEY = new Set(['price', 'totalPrice', 'discountPrice', 'finalPrice', 'amount', 'balance', 'before_balance', 'after_balance']);

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
    return h('dl', { class: 'story-facts' }, ...entries.map(([key, it]) => h('div', {}, h('dt', { text: name(key) }), h('dd', { text: value(key, it) }))));
}

function list(key, rows) {
    if (rows.length === 0) return h('p', { class: 'sub', text: t('none') });
    if (rows.every(plain)) return h('p', { text: rows.map((row) => value(key, row)).join(', ') });
    // Without what no row has.
    const columns = [...new Set(rows.flatMap((row) => Object.keys(row).filter((column) => row[column] !== null)))];
    return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': name(key) },
        h('table', { class: 'story' },
            h('caption', { class: 'unseen', text: name(key) }),
            h('thead', {}, h('tr', {}, ...columns.map((column) => h('th', { scope: 'col', text: name(column) })))),
            h('tbody', {}, ...rows.map((row) => h('tr', {}, ...columns.map((column) => h('td', { class: ISO.test(row[column]) ? 'when' : plain(row[column] ?? null) ? null : 'nested', text: row[column] === undefined ? '' : value(column, row[column]) })))))));
}

// Whatever the service tells, by its shape: a field that is new is shown under its own name.
function standing(it, title, level) {
    const entries = Object.entries(it);
    const simple = entries.filter(([, inner]) => plain(inner));
    const box = h('section', {}, h(`h${Math.min(level, 6)}`, { text: title }));
    if (simple.length > 0) box.append(facts(simple));
    for (const [key, inner] of entries) {
        if (plain(inner)) continue;
        if (Array.isArray(inner)) box.append(h(`h${Math.min(level + 1, 6)}`, { text: name(key) }), list(key, inner));
        else box.append(standing(inner, name(key), level + 1));
    }
    return box;
}

const event = (word) => (has(`event.${word}`) ? t(`event.${word}`) : word);

// What happened to an order is told; to a user, it is gathered from what there is.
function happened(story) {
    if (Array.isArray(story.events)) return story.events.map(({ at, event: word, detail }) => ({ at, what: event(word), more: detail ?? '' }));
    const orders = new Map([...(story.orders ?? []), ...(story.openOrders ?? [])].map((order) => [order.orderId, order]));
    const order = (id) => t('story.order.of', { id });
    const events = [
        ...(story.entries ?? []).map((it) => ({ at: it.createdAt, what: event('BALANCE_CHANGED'), more: `${it.transactionType} ${won(it.amount)} → ${won(it.after_balance)}` })),
        ...[...orders.values()].flatMap((it) => [
            { at: it.orderedAt, what: event('ORDER_PLACED'), more: `${order(it.orderId)} · ${won(it.finalPrice)}` },
            { at: it.paidAt, what: event('ORDER_PAID'), more: order(it.orderId) },
            { at: it.closedAt, what: event('ORDER_CLOSED'), more: [order(it.orderId), it.closeReason].filter(Boolean).join(' · ') },
        ]),
        ...(story.coupons ?? []).flatMap((it) => [
            { at: it.createdAt, what: event('COUPON_TAKEN'), more: it.couponCode },
            { at: it.usedAt, what: event('COUPON_USED'), more: it.couponCode },
        ]),
    ];
    return events.filter(({ at }) => typeof at === 'string').sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0));
}

function told(story, title) {
    const { events: _, ...rest } = story;
    const events = happened(story);
    return [
        h('h3', { text: title }),
        ...(events.length === 0 ? [] : [
            h('h4', { text: t('story.timeline') }),
            h('ol', { class: 'timeline' }, ...events.map(({ at, what, more }) => h('li', {}, h('time', { text: readIso(at) }), h('span', { text: what }), h('span', { class: 'sub', text: more })))),
        ]),
        standing(rest, t('story.facts'), 4),
    ];
}

export function findStory() {
    sheet(t('story.title'), (body) => {
        const choice = (kind, checked) => h('label', { class: 'choice' }, h('input', { type: 'radio', name: 'kind', value: kind, checked }), h('span', { text: t(`story.${kind}`) }));
        const input = h('input', { id: 'story-number', name: 'number', type: 'text', inputmode: 'numeric', pattern: '[0-9]{1,16}', required: true, autocomplete: 'off' });
        const found = h('div', { class: 'story-found', tabindex: '-1' });
        const form = h('form', { class: 'search' },
            h('fieldset', {}, h('legend', { class: 'unseen', text: t('story.title') }), choice('order', true), choice('user', false)),
            h('label', { for: 'story-number', class: 'unseen', text: t('story.number') }), input,
            h('button', { class: 'primary', type: 'submit', text: t('story.search') }));
        let asked = 0;
        form.addEventListener('submit', async (event) => {
            event.preventDefault();
            const mine = (asked += 1);
            const kind = form.elements.kind.value;
            const id = input.value.trim();
            found.replaceChildren(h('p', { class: 'sub', text: t('loading') }));
            try {
                const story = await read(`/${kind}s/${encodeURIComponent(id)}/story`);
                if (mine !== asked) return;
                found.replaceChildren(...told(story, t(`story.${kind}.of`, { id })));
            } catch (refused) {
                if (mine === asked) found.replaceChildren(h('p', { class: 'error', text: explain(refused) }));
            }
            found.focus();
        });
        body.append(form, found);
        input.placeholder = t('story.number');
        input.focus();
    });
}

export function showActs() {
    sheet(t('acts.title'), (body) => {
        const input = h('input', { id: 'acts-operator', type: 'text', maxlength: 32, autocomplete: 'off' });
        const form = h('form', { class: 'search' }, h('label', { for: 'acts-operator', text: t('acts.filter') }), input, h('button', { class: 'act', type: 'submit', text: t('story.search') }));
        body.append(form);
        const shown = pages(body, (page) => {
            const operator = input.value.trim();
            return read(`/acts?page=${page}&size=50${operator ? `&operator=${encodeURIComponent(operator)}` : ''}`);
        }, (acts, box) => {
            if (acts.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('acts.none') }));
                return;
            }
            box.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('acts.title') },
                h('table', { class: 'story acts' },
                    h('caption', { class: 'unseen', text: t('acts.title') }),
                    h('thead', {}, h('tr', {}, ...['at', 'operator', 'act', 'status', 'detail'].map((column) => h('th', { scope: 'col', text: t(`acts.${column}`) })))),
                    h('tbody', {}, ...acts.map(row)))));
        });
        form.addEventListener('submit', (event) => {
            event.preventDefault();
            shown.reload();
        });
    });
}

function row({ operator, act, target, detail, status, at, requestId }) {
    const more = [target, typeof detail === 'string' ? detail : JSON.stringify(detail)].filter(Boolean).join(' · ');
    const failed = status >= 400;
    return h('tr', { title: requestId ? `${t('acts.request')}: ${requestId}` : null },
        h('td', { class: 'when', text: readIso(at) }),
        h('td', { text: operator }),
        h('td', { text: act }),
        h('td', { class: failed ? 'alarm' : null, text: String(status) }),
        h('td', { class: 'detail', text: more }));
}
