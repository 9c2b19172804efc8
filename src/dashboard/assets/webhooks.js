// The receivers of events: what is sent to them, what failed, and sending it again.

import { read, write } from './api.js';
import { announce, confirmAndRun, errorText, keepLoading, openForm, openSheet, paginate } from './dialogs.js';
import { h, icon } from './dom.js';
import { readIso, t } from './i18n.js';

const REFRESH_MS = 3_000;
const ICONS = { ON: 'ok', OFF: 'waiting', FAILED: 'bad' };
const ATTEMPTS = 50;

/// Opens the list of the webhooks.
export function openWebhooks() {
    openSheet(t('webhooks.title'), (body, dialog) => {
        body.append(h('p', { class: 'lead', text: t('webhooks.lead') }));
        const fresh = h('button', { class: 'action', type: 'button', 'data-needs': 'admin', text: t('webhooks.new') });
        body.append(h('div', { class: 'buttons' }, fresh));
        const list = paginate(body, (page) => read(`/webhooks?page=${page}&size=50`), (all, box, reload) => {
            if (all.length === 0) box.replaceChildren(h('p', { class: 'nothing', text: t('webhooks.none') }));
            else box.replaceChildren(h('ul', { class: 'letters' }, ...all.map((it) => webhook(it, reload))));
        });
        fresh.addEventListener('click', () => newWebhook(() => dialog.open && list.reload()));
    });
}

/// What the state of a webhook says, in a line.
function stateOf({ status, failingSince, retries, nextAttemptAt }) {
    return [
        t(`webhooks.status.${status}`),
        failingSince && status === 'ON' ? t('webhooks.failing', { at: readIso(failingSince), next: readIso(nextAttemptAt) }) : null,
        retries > 0 ? t('webhooks.retries', { n: retries }) : null,
    ].filter(Boolean).join(' · ');
}

function webhook(it, reload) {
    const { webhookId: id, url, types, description, status, failingSince, retries } = it;
    const mark = status === 'ON' && (failingSince || retries > 0) ? 'warn' : ICONS[status];
    const on = status === 'ON';
    const toggle = h('button', { class: 'action', type: 'button', 'data-needs': 'admin', text: t(on ? 'webhooks.off' : 'webhooks.on') });
    toggle.addEventListener('click', () => confirmAndRun(
        { title: t(on ? 'webhooks.off' : 'webhooks.on'), text: t(on ? 'webhooks.off.ask' : 'webhooks.on.ask', { url }), yes: t(on ? 'webhooks.off' : 'webhooks.on'), danger: on },
        async () => {
            await write('PATCH', `/webhooks/${id}`, { enabled: !on });
            reload();
            return t(on ? 'webhooks.off.done' : 'webhooks.on.done');
        }));
    return h('li', { 'data-webhook': String(id), 'data-status': status },
        h('header', {},
            h('span', { class: 'mark' }, icon(mark)), h('b', { class: 'url', text: url }),
            h('button', { class: 'action', type: 'button', text: t('webhooks.deliveries'), 'aria-label': `${t('webhooks.deliveries')}: ${url}`, onclick: () => openDeliveries(it) }),
            toggle),
        h('p', { text: stateOf(it) }),
        h('p', { class: 'sub', text: [description, types.join(', ')].filter(Boolean).join(' · ') }));
}

function newWebhook(done) {
    openForm({
        title: t('webhooks.new'), submit: t('create'),
        fields: [
            { name: 'url', label: t('webhooks.url'), maxLength: 2048, placeholder: 'https://' },
            { name: 'types', label: t('webhooks.types'), maxLength: 1000, value: '*', hint: t('webhooks.types.hint') },
            { name: 'description', label: t('webhooks.description'), maxLength: 200, required: false },
        ],
        async send({ url, types, description }) {
            const named = types.split(',').map((type) => type.trim()).filter(Boolean);
            const created = await write('POST', '/webhooks', { url, types: named, ...(description === null ? {} : { description }) });
            done();
            showSecret(created.secret);
            return t('webhooks.created');
        },
    });
}

/// Shows a secret, this once.
function showSecret(secret) {
    openSheet(t('webhooks.secret'), (body) => {
        const field = h('textarea', { id: 'webhook-secret', class: 'secret', rows: '2', readonly: true, spellcheck: 'false', text: secret, onclick: ({ currentTarget }) => currentTarget.select() });
        body.append(h('p', { class: 'lead', text: t('webhooks.secret.lead') }),
            h('div', { class: 'field' }, h('label', { for: 'webhook-secret', text: t('webhooks.secret') }), field));
        field.focus();
        field.select();
    }, { size: '' });
}

/// Opens the attempts of a webhook, newest first.
function openDeliveries({ webhookId: id, url }) {
    openSheet(`${t('webhooks.deliveries')} · ${url}`, (body, dialog) => {
        const failed = h('input', { id: 'webhook-failed', type: 'checkbox' });
        body.append(h('p', { class: 'choice' }, failed, h('label', { for: 'webhook-failed', text: t('webhooks.failedOnly') })));
        const box = h('div', { class: 'page' });
        body.append(box);
        const load = keepLoading(dialog, REFRESH_MS, async () => {
            const wanted = failed.checked;
            try {
                const { content } = await read(`/webhooks/${id}/deliveries?limit=${ATTEMPTS}&failed=${wanted}`);
                if (wanted === failed.checked && !box.contains(document.activeElement)) box.replaceChildren(table(id, content));
            } catch (error) {
                box.replaceChildren(h('p', { class: 'error', text: errorText(error) }));
            }
        });
        failed.addEventListener('change', load);
    });
}

function table(id, attempts) {
    if (attempts.length === 0) return h('p', { class: 'nothing', text: t('webhooks.deliveries.none') });
    const columns = ['at', 'event', 'attempt', 'outcome', 'took', 'resend'];
    return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('webhooks.deliveries') },
        h('table', { class: 'records deliveries' },
            h('caption', { class: 'unseen', text: t('webhooks.deliveries') }),
            h('thead', {}, h('tr', {}, ...columns.map((column) => h('th', { scope: 'col', text: t(`webhooks.${column}`) })))),
            h('tbody', {}, ...attempts.map((it) => attempt(id, it)))));
}

function attempt(id, { eventId, type, attempt: nth, at, tookMs, status, failure, resent }) {
    const again = h('button', { class: 'link', type: 'button', 'data-needs': 'admin', text: t('webhooks.resend'), 'aria-label': `${t('webhooks.resend')}: ${eventId}` });
    again.addEventListener('click', async () => {
        again.disabled = true;
        try {
            await write('POST', `/webhooks/${id}/resend`, { eventId });
            announce(t('webhooks.resent', { id: eventId }));
        } catch (error) {
            announce(errorText(error));
        }
        again.disabled = false;
        again.blur();
    });
    const outcome = failure === null ? t('webhooks.delivered') : t(`webhooks.failure.${failure}`);
    return h('tr', { 'data-failed': failure === null ? null : 'true' },
        h('td', { class: 'when', text: readIso(at) }),
        h('td', {}, h('b', { text: type }), h('span', { class: 'sub', text: ` ${eventId}` })),
        h('td', { class: 'when', text: resent ? t('webhooks.byHand', { n: nth }) : String(nth) }),
        h('td', { class: failure === null ? null : 'alarm', text: status === null ? outcome : `${outcome} (${status})` }),
        h('td', { class: 'when', text: t('webhooks.ms', { n: tookMs }) }),
        h('td', {}, again));
}
