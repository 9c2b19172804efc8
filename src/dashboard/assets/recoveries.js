// The partitions that do not decide, and what became of those that Redis lost: the panel with the newest recoveries, and all of them.

import { read } from './api.js';
import { openSheet, paginate } from './dialogs.js';
import { byId, h, icon, part, updateAttribute, updateList, updateText } from './dom.js';
import { counted, duration, has, instant, moment, number, readIso, share, t } from './i18n.js';
import { present } from './sale.js';

const ICONS = { RUNNING: 'waiting', COMPLETE: 'ok', WITHHELD: 'warn', FAILED: 'bad' };
const COLUMNS = ['at', 'partition', 'outcome', 'duration', 'withheld', 'detail'];

const head = () => h('thead', {}, h('tr', {}, ...COLUMNS.map((column) => h('th', { scope: 'col', text: t(`recoveries.${column}`) }))));

function row() {
    return h('tr', {},
        h('td', { class: 'when', 'data-part': 'at' }),
        h('td', { 'data-part': 'partition' }),
        h('td', { class: 'outcome' }, h('span', { class: 'mark', 'data-part': 'mark' }), ' ', h('span', { 'data-part': 'outcome' }),
            h('span', { class: 'meter', 'aria-hidden': 'true', 'data-part': 'bar', hidden: true }, h('i', { 'data-part': 'meter' }))),
        h('td', { class: 'when', 'data-part': 'duration' }),
        h('td', { class: 'when', 'data-part': 'withheld' }),
        h('td', { class: 'detail', 'data-part': 'detail' }));
}

function withheld({ withheldUnits: units, withheldCoupons: coupons }) {
    const parts = [units > 0 ? t('recoveries.units', { n: units }) : null, coupons > 0 ? t('recoveries.coupons', { n: coupons }) : null];
    return parts.filter(Boolean).join(' · ') || t('none');
}

function missing({ outcome, missingFirstSeq: first, missingLastSeq: last }) {
    if (outcome !== 'WITHHELD' || first === null) return null;
    return last === null ? t('recoveries.missing.unknown', { first: number(first) }) : t('recoveries.missing', { first: number(first), last: number(last) });
}

/// How far a rebuild in progress is.
function progress({ outcome, step, rowsDone, rowsExpected, etaSeconds }) {
    if (outcome !== 'RUNNING' || !step || !has(`recoveries.step.${step}`)) return null;
    if (step !== 'load' || rowsExpected === null || etaSeconds === null) return t(`recoveries.step.${step}`);
    return t('recoveries.rows', { share: share(rowsDone, rowsExpected), n: number(rowsDone), of: number(rowsExpected), t: counted(etaSeconds) });
}

/// Fills a row. `seconds`: how long the recovery took, or takes.
function update(element, it, when, seconds) {
    const symbol = part(element, 'mark');
    if (symbol.dataset.outcome !== it.outcome) {
        symbol.dataset.outcome = it.outcome;
        symbol.replaceChildren(icon(ICONS[it.outcome]));
    }
    updateAttribute(element, 'data-recovery', it.recoveryId);
    updateText(part(element, 'at'), when);
    updateText(part(element, 'partition'), number(it.partition));
    updateText(part(element, 'outcome'), t(`recoveries.outcome.${it.outcome}`));
    updateText(part(element, 'duration'), duration(seconds));
    updateText(part(element, 'withheld'), withheld(it));
    const loading = it.outcome === 'RUNNING' && it.rowsExpected > 0;
    part(element, 'bar').hidden = !loading;
    if (loading) part(element, 'meter').style.setProperty('--share', Math.min(1, it.rowsDone / it.rowsExpected));
    const details = [
        progress(it), it.reason, missing(it), it.detail,
        it.attempts > 1 ? t('recoveries.attempts', { n: it.attempts }) : null,
        it.begunBy === 'OPERATOR' ? t('recoveries.byHand') : null,
    ];
    updateText(part(element, 'detail'), details.filter(Boolean).join(' · '));
}

function drawClosed(panel, partitions) {
    const closed = partitions?.closed ?? [];
    updateList(panel.querySelector('.closed'), closed, (it) => it.partition,
        () => h('li', {}, h('span', { class: 'mark', 'data-ok': 'false' }, icon('bad')), h('b', { 'data-part': 'name' }), h('span', { class: 'sub', 'data-part': 'reason' })),
        (element, { partition, reason }) => {
            updateAttribute(element, 'data-partition', String(partition));
            updateText(part(element, 'name'), t('recoveries.closed', { n: number(partition) }));
            updateText(part(element, 'reason'), reason);
        });
}

export function drawRecoveries(snapshot) {
    const panel = byId('recoveries');
    drawClosed(panel, snapshot.partitions);
    if (!present(panel, snapshot.recoveries)) return;
    const all = snapshot.recoveries;
    panel.querySelector('.scroll').hidden = all.length === 0;
    panel.querySelector('.nothing').hidden = all.length > 0;
    updateList(panel.querySelector('tbody'), all, (it) => it.recoveryId, row, (element, it) => {
        update(element, it, moment(it.noticedAt, snapshot.at), it.seconds ?? Math.max(0, (snapshot.at - it.noticedAt) / 1000));
        updateAttribute(part(element, 'at'), 'title', instant(it.noticedAt));
    });
}

/// Opens the log of all recoveries.
export function openRecoveries() {
    openSheet(t('recoveries.title'), (body) => {
        paginate(body, (page) => read(`/recoveries?page=${page}&size=50`), (all, box) => {
            if (all.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('recoveries.none') }));
                return;
            }
            const rows = all.map((it) => {
                const element = row();
                update(element, it, readIso(it.noticedAt), it.seconds);
                return element;
            });
            box.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('recoveries.title') },
                h('table', { class: 'records' }, h('caption', { class: 'unseen', text: t('recoveries.title') }), head(), h('tbody', {}, ...rows))));
        });
    });
}
