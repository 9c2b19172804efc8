// The actions of operators: campaigns, dead letters, stuck payments, withheld units, an audit, webhooks; and the buttons of the page.

import { onAddress } from './address.js';
import { ApiError, audit, read, write } from './api.js';
import { openForm, confirm, confirmAndRun, errorText, paginate, openSheet, announce, onAnnouncement } from './dialogs.js';
import { byId, h } from './dom.js';
import { setAuditRunning } from './engine.js';
import { categoriesField, checkCoupon, couponBody, discountFields, MAX_UNITS, productsField, sumFields, zoneHint } from './forms.js';
import { localIso, number, readIso, t, won } from './i18n.js';
import { openOperatorLog } from './operator-log.js';
import { allProducts, bindProductLinks, editProductById, newProduct, openProduct } from './products.js';
import { openRecoveries } from './recoveries.js';
import { openSales } from './sales.js';
import { openTimelineSearch } from './timeline.js';
import { openWebhooks } from './webhooks.js';

const WEEK_MS = 7 * 24 * 60 * 60 * 1000;

function newCampaign(now) {
    openForm({
        title: t('campaigns.new'), submit: t('create'),
        fields: [
            { name: 'couponCode', label: t('form.code'), maxLength: 64 },
            ...discountFields(),
            { name: 'totalQuantity', label: t('form.total'), kind: 'number', min: 1, max: MAX_UNITS },
            { name: 'opensAt', label: t('form.opensAt'), kind: 'time', required: false, hint: t('form.opensAt.hint'), half: true },
            { name: 'closesAt', label: t('form.closesAt'), kind: 'time', required: false, hint: t('form.closesAt.hint'), half: true },
            { name: 'expiredAt', label: t('form.expiredAt'), kind: 'time', hint: zoneHint(), value: `${localIso(now() + WEEK_MS).slice(0, 10)}T23:59:59` },
            ...[...sumFields(), productsField({ required: false, half: true }), categoriesField()].map((spec) => ({ ...spec, folded: t('form.conditions') })),
        ],
        check: (values) => checkCoupon(values, localIso(now())),
        async send(values) {
            const created = await write('POST', '/coupons', couponBody(values));
            return t('action.campaign.created', { code: created.couponCode, id: created.couponId });
        },
    });
}

function changeTimes(campaign) {
    const { couponId: id, couponCode: code } = campaign;
    const before = { opensAt: localIso(campaign.opensAt), closesAt: localIso(campaign.closesAt) };
    openForm({
        title: `${t('campaign.times')} · ${code}`, submit: t('save'), lead: zoneHint(),
        fields: [
            { name: 'opensAt', label: t('form.opensAt'), kind: 'time', value: before.opensAt },
            { name: 'closesAt', label: t('form.closesAt'), kind: 'time', value: before.closesAt, hint: `${t('form.expiredAt')}: ${readIso(localIso(campaign.expiredAt))}` },
        ],
        check({ opensAt, closesAt }) {
            if (opensAt === before.opensAt && closesAt === before.closesAt) return t('form.nothing');
            return opensAt >= closesAt ? { field: 'closesAt', text: t('form.wrong.window') } : null;
        },
        async send(values) {
            const changed = Object.fromEntries(Object.entries(values).filter(([name, value]) => value !== before[name]));
            await write('PATCH', `/coupons/${id}`, changed);
            return t('action.campaign.changed', { code });
        },
    });
}

function openCampaign({ couponId: id, couponCode: code }, now) {
    const text = t('action.campaign.open.ask', { code });
    confirmAndRun({ title: t('campaign.open'), text, yes: t('campaign.open'), danger: false }, async () => {
        await write('PATCH', `/coupons/${id}`, { opensAt: localIso(now()) });
        return t('action.campaign.opened', { code });
    });
}

function closeCampaign({ couponId: id, couponCode: code, remainingQuantity: left }, now) {
    const text = t('action.campaign.close.ask', { code, n: number(left) });
    confirmAndRun({ title: t('campaign.close'), text, yes: t('campaign.close') }, async () => {
        await write('PATCH', `/coupons/${id}`, { closesAt: localIso(now()) });
        return t('action.campaign.closed', { code });
    });
}

function deadLetters() {
    openSheet(t('dead.title'), (body) => {
        body.append(h('p', { class: 'lead', text: t('dead.lead') }));
        paginate(body, (page) => read(`/dead-letters?page=${page}&size=20`), (letters, box, reload) => {
            if (letters.length === 0) box.replaceChildren(h('p', { class: 'nothing', text: t('dead.none') }));
            else box.replaceChildren(h('ul', { class: 'letters' }, ...letters.map((it) => letter(it, reload))));
        });
    });
}

function letter({ partition, streamId, seq, reason, fields, recordedAt }, reload) {
    const button = h('button', { class: 'action', type: 'button', 'data-needs': 'admin', text: t('dead.retry') });
    button.addEventListener('click', async () => {
        const go = await confirm({ title: t('dead.retry'), text: t('dead.retry.ask'), yes: t('dead.retry'), danger: false });
        if (!go) return;
        button.disabled = true;
        try {
            await write('POST', '/dead-letters/retry', { partition, streamId, seq });
            announce(t('dead.retry.done'));
        } catch (error) {
            announce(errorText(error));
        }
        // It is applied, or has another reason.
        reload();
    });
    return h('li', {},
        h('header', {}, h('b', { text: t('dead.place', { partition, id: streamId }) }), h('span', { class: 'sub', text: readIso(recordedAt) }), button),
        h('p', { text: reason }),
        h('details', {}, h('summary', { text: t('dead.fields') }), h('pre', { text: JSON.stringify(fields, null, 2) })));
}

function stuckPayments() {
    openSheet(t('stuck.title'), (body) => {
        body.append(h('p', { class: 'lead', text: t('stuck.lead') }));
        const load = async () => {
            const { content, totalElements } = await read('/payments/stuck');
            // The service lists at most a hundred.
            return { content, totalElements: Math.min(totalElements, content.length), page: 0, size: 100 };
        };
        paginate(body, load, (payments, box, reload) => {
            if (payments.length === 0) box.replaceChildren(h('p', { class: 'nothing', text: t('stuck.none') }));
            else box.replaceChildren(h('ul', { class: 'letters' }, ...payments.map((it) => stuckPayment(it, reload))));
        });
    });
}

function stuckPayment(payment, reload) {
    const { orderId: id, userId, paymentType, amount, receipt, paymentStatus: state, since, askCount, lastAnswer } = payment;
    // In the other states the order is decided, and the gateway has to follow.
    const open = state === 'STARTED';
    return h('li', {},
        h('header', {},
            h('b', { text: t('stuck.order', { id }) }),
            h('span', { class: 'sub', text: t('stuck.since', { at: readIso(since) }) }),
            open ? h('button', { class: 'action', type: 'button', 'data-needs': 'admin', 'aria-label': t('stuck.resolveOf', { id }), text: t('stuck.resolve'), onclick: () => resolvePayment(payment, reload) }) : null),
        h('p', { text: [t(`stuck.state.${state}`), paymentType, won(amount), t('stuck.user', { id: userId })].join(' · ') }),
        h('p', { class: 'sub', text: t('stuck.said', { n: askCount, said: lastAnswer ?? '–' }) }),
        h('p', { class: 'sub', text: t('stuck.receipt', { receipt }) }));
}

/// Opens the form that resolves a payment; calls `done` afterwards.
function resolvePayment({ orderId: id, amount }, done) {
    openForm({
        title: `${t('stuck.resolve')} · ${t('stuck.order', { id })}`, submit: t('stuck.resolve'), lead: t('stuck.resolve.lead'), danger: true,
        fields: [
            { name: 'outcome', label: t('stuck.outcome'), kind: 'choice', options: ['DECLINED', 'APPROVED'].map((outcome) => [outcome, t(`stuck.outcome.${outcome}`)]) },
            { name: 'transactionId', label: t('field.transactionId'), maxLength: 255, required: false, hint: t('stuck.transaction.hint') },
            { name: 'reason', label: t('field.reason'), maxLength: 500, hint: t('stuck.reason.hint') },
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
    openSheet(t('action.release'), async (body, dialog) => {
        body.append(h('p', { class: 'lead', text: t('action.release.lead') }));
        const list = h('ul', { class: 'plain' });
        body.append(list);
        try {
            const { products, coupons } = await read('/withheld');
            list.append(
                ...products.map(({ productId: id, withheldQuantity: n }) => h('li', { text: t('action.release.product', { id, n: number(n) }) })),
                ...coupons.map(({ couponId: id, withheldQuantity: n }) => h('li', { text: t('action.release.coupon', { id, n: number(n) }) })));
            if (products.length + coupons.length === 0) {
                list.replaceWith(h('p', { class: 'nothing', text: t('none') }));
                return;
            }
        } catch (error) {
            list.replaceWith(h('p', { class: 'error', text: errorText(error) }));
            return;
        }
        const go = h('button', { class: 'primary danger', type: 'button', 'data-needs': 'admin', text: t('action.release') });
        go.addEventListener('click', () => {
            confirmAndRun({ title: t('action.release'), text: t('action.release.ask'), yes: t('action.release') }, async () => {
                await write('POST', '/withheld/release', {});
                dialog.close();
                return t('action.release.done');
            });
        });
        body.append(h('div', { class: 'buttons' }, go));
    });
}

async function runAudit(snapshot) {
    setAuditRunning(true, snapshot());
    try {
        const { balanced } = await audit();
        announce(t(balanced ? 'audit.ok' : 'audit.bad'));
    } catch (error) {
        announce(error instanceof ApiError && error.code === 'REQUEST_IN_PROGRESS' ? t('audit.busy') : errorText(error));
    } finally {
        setAuditRunning(false, snapshot());
    }
}

/// Binds the page's buttons. `snapshot()` is the latest, `now()` the server's clock; `onResult(text)` gets the result of an action.
export function bindActions({ snapshot, now, onResult }) {
    onAnnouncement(onResult);
    const actions = {
        open: (id) => openCampaign(campaignOf(id), now),
        close: (id) => closeCampaign(campaignOf(id), now),
        times: (id) => changeTimes(campaignOf(id)),
        stock: (id) => editProductById(id),
        dead: deadLetters,
        stuck: stuckPayments,
        withheld,
        recoveries: openRecoveries,
    };
    const campaignOf = (id) => snapshot().campaigns.find(({ couponId }) => couponId === id);
    bindProductLinks();
    onAddress(/^#sales$/, () => openSales(now));
    onAddress(/^#product-([1-9]\d{0,15})$/, ([, id]) => openProduct(Number(id)));
    byId('sales').addEventListener('click', () => openSales(now));
    byId('new-campaign').addEventListener('click', () => newCampaign(now));
    byId('new-product').addEventListener('click', newProduct);
    byId('all-products').addEventListener('click', allProducts);
    byId('dead').addEventListener('click', deadLetters);
    byId('stuck').addEventListener('click', stuckPayments);
    byId('find').addEventListener('click', () => openTimelineSearch());
    byId('operator-log').addEventListener('click', openOperatorLog);
    byId('webhooks').addEventListener('click', openWebhooks);
    byId('all-recoveries').addEventListener('click', openRecoveries);
    byId('run-audit').addEventListener('click', ({ currentTarget }) => {
        if (currentTarget.getAttribute('aria-disabled') !== 'true') runAudit(snapshot);
    });
    byId('main').addEventListener('click', ({ target }) => {
        const button = target.closest('[data-action]');
        if (button) actions[button.dataset.action](Number(button.dataset.id));
    });
}
