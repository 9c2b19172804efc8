// What operators do: campaigns, products, dead letters, stuck payments, what is held back, an audit.

import { Refused, audit, catalogue, read, write } from './api.js';
import { ask, confirm, confirmed, explain, pages, sheet, tell, whenSaid } from './dialogs.js';
import { byId, h } from './dom.js';
import { auditRuns } from './engine.js';
import { localIso, number, readIso, shopZone, t, won } from './i18n.js';
import { findStory, showActs } from './stories.js';

const MOST_COUPONS = 1_000_000_000;
const MOST_WON = 1_000_000_000_000;
const WEEK_MS = 7 * 24 * 60 * 60 * 1000;

const zone = () => t('zoneHint', { zone: shopZone() });

function newCampaign(now) {
    ask({
        title: t('campaigns.new'), submit: t('create'),
        fields: [
            { name: 'couponCode', label: t('form.code'), most: 64 },
            { name: 'discountType', label: t('form.discountType'), kind: 'choice', half: true, options: ['FIXED', 'PERCENTAGE'].map((kind) => [kind, t(`form.discountType.${kind}`)]) },
            { name: 'discountAmount', label: t('form.discountAmount'), kind: 'number', min: 1, max: MOST_WON, half: true },
            { name: 'totalQuantity', label: t('form.total'), kind: 'number', min: 1, max: MOST_COUPONS },
            { name: 'opensAt', label: t('form.opensAt'), kind: 'time', required: false, hint: t('form.opensAt.hint'), half: true },
            { name: 'closesAt', label: t('form.closesAt'), kind: 'time', required: false, hint: t('form.closesAt.hint'), half: true },
            { name: 'expiredAt', label: t('form.expiredAt'), kind: 'time', hint: zone(), value: `${localIso(now + WEEK_MS).slice(0, 10)}T23:59:59` },
        ],
        async send(values) {
            const body = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
            const made = await write('POST', '/coupons', body);
            return t('act.campaign.created', { code: made.couponCode, id: made.couponId });
        },
    });
}

function changeTimes(campaign) {
    const { couponId: id, couponCode: code } = campaign;
    const before = { opensAt: localIso(campaign.opensAt), closesAt: localIso(campaign.closesAt) };
    ask({
        title: `${t('campaign.times')} · ${code}`, submit: t('save'), lead: zone(),
        fields: [
            { name: 'opensAt', label: t('form.opensAt'), kind: 'time', value: before.opensAt },
            { name: 'closesAt', label: t('form.closesAt'), kind: 'time', value: before.closesAt, hint: `${t('form.expiredAt')}: ${readIso(localIso(campaign.expiredAt))}` },
        ],
        check: ({ opensAt, closesAt }) => (opensAt === before.opensAt && closesAt === before.closesAt ? t('form.nothing') : null),
        async send(values) {
            const changed = Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== before[name]));
            await write('PATCH', `/coupons/${id}`, changed);
            return t('act.campaign.changed', { code });
        },
    });
}

function openCampaign({ couponId: id, couponCode: code }, now) {
    const text = t('act.campaign.open.ask', { code });
    confirmed({ title: t('campaign.open'), text, yes: t('campaign.open'), danger: false }, async () => {
        await write('PATCH', `/coupons/${id}`, { opensAt: localIso(now()) });
        return t('act.campaign.opened', { code });
    });
}

function closeCampaign({ couponId: id, couponCode: code, remainingQuantity: left }, now) {
    const text = t('act.campaign.close.ask', { code, n: number(left) });
    confirmed({ title: t('campaign.close'), text, yes: t('campaign.close') }, async () => {
        await write('PATCH', `/coupons/${id}`, { closesAt: localIso(now()) });
        return t('act.campaign.closed', { code });
    });
}

const CATEGORIES = ['OUTER', 'TOP', 'BOTTOM', 'SHOES'];
const category = (value = '') => ({
    name: 'category', label: t('form.category'), most: 32, pattern: '[A-Z][A-Z0-9_]{0,31}', list: CATEGORIES, hint: t('form.category.hint'), value,
});

function newProduct() {
    ask({
        title: t('stock.new'), submit: t('create'),
        fields: [
            { name: 'productName', label: t('form.productName'), most: 200 },
            { name: 'price', label: t('form.price'), kind: 'number', min: 0, max: MOST_WON, half: true },
            { name: 'stockQuantity', label: t('form.stock'), kind: 'number', min: 0, max: MOST_COUPONS, half: true },
            category(),
        ],
        async send(values) {
            const made = await write('POST', '/products', values);
            return t('act.product.created', { name: made.productName, id: made.productId });
        },
    });
}

function allProducts() {
    sheet(t('stock.all'), (body) => {
        pages(body, (page) => catalogue(page, 20), (products, box, again) => {
            if (products.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('stock.none') }));
                return;
            }
            const head = [['stock.product'], ['stock.category'], ['stock.price', 'number'], ['stock.onSale', 'number']];
            box.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('stock.all') },
                h('table', { class: 'story' },
                    h('caption', { class: 'unseen', text: t('stock.all') }),
                    h('thead', {}, h('tr', {}, ...head.map(([key, kind]) => h('th', { scope: 'col', class: kind, text: t(key) })), h('th', { scope: 'col' }, h('span', { class: 'unseen', text: t('stock.act') })))),
                    h('tbody', {}, ...products.map((it) => h('tr', {},
                        h('th', { scope: 'row' }, h('b', { text: it.productName }), h('span', { class: 'sub', text: ` ${it.productId}` })),
                        h('td', { text: it.category }),
                        h('td', { class: 'number', text: won(it.price) }),
                        h('td', { class: 'number', text: number(it.stockQuantity) }),
                        h('td', { class: 'control' }, h('button', { class: 'act', type: 'button', 'aria-label': t('stock.actOf', { name: it.productName }), text: t('stock.act'), onclick: () => restock({ ...it, onSale: it.stockQuantity }, again) }))))))));
        });
    });
}

/// `done` is called once it is done.
function restock({ productId: id, productName: name, price, category: group, onSale }, done = () => {}) {
    const before = { productName: name, price, category: group };
    ask({
        title: `${t('stock.act')} · ${name}`, submit: t('save'), folded: t('form.change'),
        fields: [
            { name: 'stockDelta', label: t('form.delta'), kind: 'signed', min: -MOST_COUPONS, max: MOST_COUPONS, required: false, hint: t('form.delta.hint', { n: number(onSale) }) },
            { name: 'productName', label: t('form.productName'), most: 200, value: name, folded: true },
            { name: 'price', label: t('form.price'), kind: 'number', min: 0, max: MOST_WON, value: price, folded: true },
            { ...category(group), folded: true },
        ],
        check: (values) => (Object.keys(changed(values)).length === 0 ? t('form.nothing') : null),
        question: ({ stockDelta }) => (stockDelta < 0
            ? { title: t('stock.act'), text: t('act.product.take.ask', { name, n: number(-stockDelta) }), yes: t('stock.act') }
            : null),
        async send(values) {
            const now = await write('PATCH', `/products/${id}`, changed(values));
            done();
            return t('act.product.changed', { name: now.productName, n: number(now.stockQuantity) });
        },
    });
    function changed({ stockDelta, ...rest }) {
        const body = Object.fromEntries(Object.entries(rest).filter(([key, value]) => value !== null && value !== before[key]));
        return stockDelta ? { stockDelta, ...body } : body;
    }
}

function deadLetters() {
    sheet(t('dead.title'), (body) => {
        body.append(h('p', { class: 'lead', text: t('dead.lead') }));
        pages(body, (page) => read(`/dead-letters?page=${page}&size=20`), (letters, box, again) => {
            if (letters.length === 0) box.replaceChildren(h('p', { class: 'nothing', text: t('dead.none') }));
            else box.replaceChildren(h('ul', { class: 'letters' }, ...letters.map((it) => letter(it, again))));
        });
    });
}

function letter({ partition, streamId, seq, reason, fields, recordedAt }, again) {
    const button = h('button', { class: 'act', type: 'button', text: t('dead.retry') });
    button.addEventListener('click', async () => {
        const go = await confirm({ title: t('dead.retry'), text: t('dead.retry.ask'), yes: t('dead.retry'), danger: false });
        if (!go) return;
        button.disabled = true;
        try {
            await write('POST', '/dead-letters/retry', { partition, streamId, seq });
            tell(t('dead.retry.done'));
        } catch (refused) {
            tell(explain(refused));
        }
        // It is gone, or it has another reason.
        again();
    });
    return h('li', {},
        h('header', {}, h('b', { text: t('dead.place', { partition, id: streamId }) }), h('span', { class: 'sub', text: readIso(recordedAt) }), button),
        h('p', { text: reason }),
        h('details', {}, h('summary', { text: t('dead.fields') }), h('pre', { text: JSON.stringify(fields, null, 2) })));
}

function stuckPayments() {
    sheet(t('stuck.title'), (body) => {
        body.append(h('p', { class: 'lead', text: t('stuck.lead') }));
        const load = async () => {
            const { content, totalElements } = await read('/payments/stuck');
            // The first hundred are all that there is to turn to.
            return { content, totalElements: Math.min(totalElements, content.length), page: 0, size: 100 };
        };
        pages(body, load, (payments, box, again) => {
            if (payments.length === 0) box.replaceChildren(h('p', { class: 'nothing', text: t('stuck.none') }));
            else box.replaceChildren(h('ul', { class: 'letters' }, ...payments.map((it) => stuckPayment(it, again))));
        });
    });
}

function stuckPayment(payment, again) {
    const { orderId: id, userId, paymentType, amount, receipt, paymentStatus: state, since, askCount, lastAnswer } = payment;
    // Of the others the order is decided: the gateway has to follow.
    const open = state === 'STARTED';
    return h('li', {},
        h('header', {},
            h('b', { text: t('stuck.order', { id }) }),
            h('span', { class: 'sub', text: t('stuck.since', { at: readIso(since) }) }),
            open ? h('button', { class: 'act', type: 'button', 'aria-label': t('stuck.resolveOf', { id }), text: t('stuck.resolve'), onclick: () => resolvePayment(payment, again) }) : null),
        h('p', { text: [t(`stuck.state.${state}`), paymentType, won(amount), t('stuck.user', { id: userId })].join(' · ') }),
        h('p', { class: 'sub', text: t('stuck.said', { n: askCount, said: lastAnswer ?? '–' }) }),
        h('p', { class: 'sub', text: t('stuck.receipt', { receipt }) }));
}

/// `done` is called once it is done.
function resolvePayment({ orderId: id, amount }, done) {
    ask({
        title: `${t('stuck.resolve')} · ${t('stuck.order', { id })}`, submit: t('stuck.resolve'), lead: t('stuck.resolve.lead'), danger: true,
        fields: [
            { name: 'outcome', label: t('stuck.outcome'), kind: 'choice', options: ['DECLINED', 'APPROVED'].map((outcome) => [outcome, t(`stuck.outcome.${outcome}`)]) },
            { name: 'transactionId', label: t('field.transactionId'), most: 255, required: false, hint: t('stuck.transaction.hint') },
            { name: 'reason', label: t('field.reason'), most: 500, hint: t('stuck.reason.hint') },
        ],
        check: ({ outcome, transactionId }) => (outcome === 'DECLINED' && transactionId !== null ? t('stuck.transaction.wrong') : null),
        question: ({ outcome }) => ({ title: t('stuck.resolve'), text: t(`stuck.ask.${outcome}`, { id, amount: won(amount) }), yes: t('stuck.resolve') }),
        async send(values) {
            const body = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
            const { orderStatus } = await write('POST', `/orders/${id}/payment-outcome`, body);
            done();
            return t(`stuck.done.${orderStatus}`, { id });
        },
    });
}

function withheld() {
    sheet(t('act.release'), async (body, dialog) => {
        body.append(h('p', { class: 'lead', text: t('act.release.lead') }));
        const list = h('ul', { class: 'plain' });
        body.append(list);
        try {
            const { products, coupons } = await read('/withheld');
            list.append(
                ...products.map(({ productId: id, withheldQuantity: n }) => h('li', { text: t('act.release.product', { id, n: number(n) }) })),
                ...coupons.map(({ couponId: id, withheldQuantity: n }) => h('li', { text: t('act.release.coupon', { id, n: number(n) }) })));
            if (products.length + coupons.length === 0) {
                list.replaceWith(h('p', { class: 'nothing', text: t('none') }));
                return;
            }
        } catch (refused) {
            list.replaceWith(h('p', { class: 'error', text: explain(refused) }));
            return;
        }
        const go = h('button', { class: 'primary danger', type: 'button', text: t('act.release') });
        go.addEventListener('click', () => {
            confirmed({ title: t('act.release'), text: t('act.release.ask'), yes: t('act.release') }, async () => {
                await write('POST', '/withheld/release', {});
                dialog.close();
                return t('act.release.done');
            });
        });
        body.append(h('div', { class: 'buttons' }, go));
    });
}

async function runAudit(snapshot, announce) {
    auditRuns(true, snapshot());
    try {
        const { balanced } = await audit();
        announce(t(balanced ? 'audit.ok' : 'audit.bad'));
    } catch (refused) {
        announce(refused instanceof Refused && refused.code === 'REQUEST_IN_PROGRESS' ? t('audit.busy') : explain(refused));
    } finally {
        auditRuns(false, snapshot());
    }
}

/// Wires the page's buttons. `snapshot()` is the latest, `now()` the server's clock, `announce(text)` says what came of an act.
export function makeActs({ snapshot, now, announce }) {
    whenSaid(announce);
    const acts = {
        open: (id) => openCampaign(campaignOf(id), now),
        close: (id) => closeCampaign(campaignOf(id), now),
        times: (id) => changeTimes(campaignOf(id)),
        stock: (id) => restock(snapshot().products.find(({ productId }) => productId === id)),
        dead: deadLetters,
        stuck: stuckPayments,
        withheld,
    };
    const campaignOf = (id) => snapshot().campaigns.find(({ couponId }) => couponId === id);
    byId('new-campaign').addEventListener('click', () => newCampaign(now()));
    byId('new-product').addEventListener('click', newProduct);
    byId('all-products').addEventListener('click', allProducts);
    byId('dead').addEventListener('click', deadLetters);
    byId('stuck').addEventListener('click', stuckPayments);
    byId('find').addEventListener('click', findStory);
    byId('acts').addEventListener('click', showActs);
    byId('run-audit').addEventListener('click', ({ currentTarget }) => {
        if (currentTarget.getAttribute('aria-disabled') !== 'true') runAudit(snapshot, announce);
    });
    byId('main').addEventListener('click', ({ target }) => {
        const button = target.closest('[data-act]');
        if (button) acts[button.dataset.act](Number(button.dataset.id));
    });
}
