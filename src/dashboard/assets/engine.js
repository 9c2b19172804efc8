// The panels of the engine: requests, orders, projection, Redis, health, audit.

import { updateAttribute, byId, updateList, h, icon, part, updateText } from './dom.js';
import { bytes, clock, counted, duration, instant, moment, ms, number, rate, refusal, share, t } from './i18n.js';
import { endedInstances, history, instanceKey, showInstance, trace } from './charts.js';
import { present } from './sale.js';

// --- key figures --------------------------------------------------------------------------------------

function vital(name, figure, sub, field, alarm = false) {
    const box = byId('vitals').querySelector(`[data-part="${name}"]`);
    updateText(box.querySelector('.figure'), figure);
    updateText(box.querySelector('.sub'), sub);
    box.classList.toggle('alarm', alarm);
    if (field) trace(box.querySelector('.trace'), field);
}

function vitals(snapshot) {
    const { requests, orders, projection } = snapshot;
    const open = (snapshot.campaigns ?? []).filter(({ state }) => state === 'OPEN');
    const left = snapshot.campaigns ? open.reduce((sum, campaign) => sum + campaign.remainingQuantity, 0) : null;
    const failing = requests?.failedPerSecond > 0;
    vital('requests', rate(requests?.perSecond), t('vital.requests.sub', { rate: rate(requests?.refusedPerSecond) }), 'perSecond');
    vital('issued', rate(snapshot.campaigns ? history.issued.at(-1) : null), t('vital.issued.sub', { n: number(left) }), 'issued');
    vital('paid', number(orders?.PAID), t('vital.paid.sub', { n: number(orders?.PENDING) }), 'paid');
    vital('p99', ms(requests?.latency?.p99Ms), t('vital.p99.sub', { p50: ms(requests?.latency?.p50Ms) }), 'p99');
    vital('failed', rate(requests?.failedPerSecond), t('vital.failed.sub', { limited: rate(requests?.limitedPerSecond), shed: rate(requests?.shedPerSecond) }), 'failed', failing);
    vital('lag', duration(projection?.lagSeconds), t('vital.lag.sub', { n: projection?.lagEvents ?? null }), 'lag');
}

// --- requests -----------------------------------------------------------------------------------------

// A path may wrap after each of its slashes.
const breakable = (path) => path.split(/(?<=\/)/).flatMap((piece) => [piece, h('wbr')]);

/// The key of the instance whose requests are shown; empty: all instances together.
let selected = '';

/// What an instance that has ended does now.
const NOTHING = { refusals: [], routes: [] };

const instanceNames = ({ name, version, startedAt }, at) => t('instances.one', { name, version, since: moment(startedAt, at) });

/// Calls `redraw` when another instance is selected.
export function bindInstances(redraw) {
    byId('instance').addEventListener('change', ({ target }) => {
        selected = target.value;
        redraw();
    });
}

/// Draws the instances. Returns the requests of the selected one, or of all.
function instances(snapshot) {
    const running = snapshot.instances ?? [];
    const choices = snapshot.instances === null ? [] : [...running, ...endedInstances(running)];
    byId('instances').hidden = running.length < 2;
    byId('instance').parentElement.hidden = choices.length < 2;
    byId('instances-unknown').hidden = snapshot.instances !== null;
    updateText(byId('history-unknown'), snapshot.historyUnavailable ? t('history.unknown', { why: snapshot.historyUnavailable }) : '');
    const chosen = choices.length > 1 ? choices.find((it) => instanceKey(it) === selected) : undefined;
    if (!chosen) selected = '';
    showInstance(selected, chosen?.endedAt !== undefined);
    byId('instance').parentElement.classList.toggle('is-chosen', selected !== '');
    const option = (it) => {
        if (!it) return t('instances.all', { n: running.length });
        return it.endedAt === undefined ? it.name : t('instances.ended', { name: it.name, at: clock(it.endedAt * 1000) });
    };
    updateList(byId('instance'), [null, ...choices], (it) => (it ? instanceKey(it) : ''),
        (it) => h('option', { value: it ? instanceKey(it) : '', 'data-instance': it?.name ?? '' }),
        (row, it) => updateText(row, option(it)));
    if (byId('instance').value !== selected) byId('instance').value = selected;
    updateText(byId('routes-instance'), chosen ? chosen.name : '');
    updateText(byId('instance-ended'), chosen && chosen.endedAt !== undefined ? t('instances.ended.lead', { at: clock(chosen.endedAt * 1000) }) : '');
    updateList(byId('instances').querySelector('tbody'), running, instanceKey,
        () => h('tr', { 'data-instance': '' }, h('th', { scope: 'row', 'data-part': 'name' }), ...figures()),
        (row, it) => {
            updateAttribute(row, 'data-instance', it.name);
            updateText(part(row, 'name'), instanceNames(it, snapshot.at));
            updateFigures(row, it.requests, it.requests?.latency);
        });
    if (!chosen) return snapshot.requests;
    return chosen.endedAt === undefined ? chosen.requests : NOTHING;
}

const figures = () => ['rate', 'refused', 'failed', 'p50', 'p95', 'p99'].map((name) => h('td', { class: name === 'p50' || name === 'p95' ? 'number spare' : 'number', 'data-part': name }));

function updateFigures(row, it, latency) {
    updateText(part(row, 'rate'), rate(it?.perSecond));
    updateText(part(row, 'refused'), rate(it?.refusedPerSecond));
    updateText(part(row, 'failed'), rate(it?.failedPerSecond));
    part(row, 'failed').classList.toggle('alarm', it?.failedPerSecond > 0);
    for (const name of ['p50', 'p95', 'p99']) updateText(part(row, name), ms(latency?.[`${name}Ms`]));
}

function traffic(snapshot) {
    const requests = instances(snapshot);
    present(byId('routes'), requests);
    if (!present(byId('traffic'), requests)) return;
    const kinds = requests.refusals.filter(({ perSecond }) => perSecond > 0);
    const high = kinds[0]?.perSecond || 1;
    updateList(byId('refusals'), kinds, ({ errorCode }) => errorCode,
        () => h('li', {}, h('span', { class: 'reason', 'data-part': 'reason' }), h('span', { class: 'code', 'data-part': 'code' }), h('b', { 'data-part': 'rate' }), h('span', { class: 'meter', 'aria-hidden': 'true' }, h('i', { 'data-part': 'meter' }))),
        (row, { errorCode, perSecond }) => {
            const name = refusal(errorCode);
            updateText(part(row, 'reason'), name);
            updateText(part(row, 'code'), name === errorCode ? '' : errorCode);
            updateText(part(row, 'rate'), rate(perSecond));
            part(row, 'meter').style.setProperty('--share', perSecond / high);
        });
    byId('no-refusals').hidden = kinds.length > 0;

    byId('by-route').hidden = requests.routes.length === 0;
    byId('routes').querySelector('.nothing').hidden = requests.routes.length > 0;
    updateList(byId('by-route').querySelector('tbody'), requests.routes, ({ method, route }) => `${method} ${route}`,
        ({ method, route }) => h('tr', {}, h('th', { scope: 'row' }, h('span', { class: 'method', text: method }), ' ', h('span', {}, ...breakable(route))), ...figures()),
        (row, it) => updateFigures(row, it, it));
}

// --- orders -------------------------------------------------------------------------------------------

const STATUSES = { PAID: 'paid', PENDING: 'pending', FAILED: 'failed', CANCELLED: 'cancelled' };

function orders(snapshot) {
    const panel = byId('orders');
    updateText(part(panel, 'stuck'), number(snapshot.stuckPayments));
    part(panel, 'stuck').classList.toggle('alarm', snapshot.stuckPayments > 0);
    if (!present(panel, snapshot.orders)) return;
    let all = 0;
    for (const [status, name] of Object.entries(STATUSES)) {
        const count = snapshot.orders[status] ?? 0;
        all += count;
        updateText(part(panel, status), number(count));
        const piece = panel.querySelector(`.split .${name}`);
        piece.hidden = count === 0;
        piece.style.setProperty('flex-grow', count);
    }
    updateText(byId('orders-total'), t('orders.total', { n: number(all) }));
}

// --- the projection, Redis ----------------------------------------------------------------------------

function projection(snapshot) {
    const panel = byId('projection');
    const it = snapshot.projection;
    if (!present(panel, it)) return;
    updateText(part(panel, 'lag'), duration(it.lagSeconds));
    updateText(part(panel, 'events'), number(it.lagEvents));
    part(panel, 'meter').style.setProperty('--share', it.maxBacklog > 0 ? Math.min(1, it.lagEvents / it.maxBacklog) : 0);
    updateText(part(panel, 'backlog'), t('projection.backlog', { share: share(it.lagEvents, it.maxBacklog), max: number(it.maxBacklog) }));
    updateText(part(panel, 'rate'), rate(it.eventsPerSecond));
    updateText(part(panel, 'dead'), number(it.deadLetters));
    part(panel, 'dead').classList.toggle('alarm', it.deadLetters > 0);
}

function persistence(redis) {
    if (redis.aofEnabled === false) return t('redis.kept.off');
    if (redis.aofLastWriteOk === false) return t('redis.kept.failed');
    const how = ['always', 'everysec', 'no'].includes(redis.appendfsync) ? t(`redis.kept.${redis.appendfsync}`) : redis.appendfsync ?? t('unknown');
    return redis.aofRewriteInProgress ? `${how} · ${t('redis.kept.rewriting')}` : how;
}

function redis(snapshot) {
    const panel = byId('redis');
    const it = snapshot.redis;
    if (!present(panel, it)) return;
    const limited = it.maxMemoryBytes > 0;
    updateText(part(panel, 'version'), it.version ?? '');
    updateText(part(panel, 'memory'), bytes(it.usedMemoryBytes));
    part(panel, 'meter').style.setProperty('--share', limited ? Math.min(1, it.usedMemoryBytes / it.maxMemoryBytes) : 0);
    updateText(part(panel, 'limit'), limited ? t('redis.memory.max', { share: share(it.usedMemoryBytes, it.maxMemoryBytes), max: bytes(it.maxMemoryBytes) }) : t('redis.memory.free'));
    updateText(part(panel, 'kept'), persistence(it));
    part(panel, 'kept').classList.toggle('alarm', it.aofEnabled === false || it.aofLastWriteOk === false || (Boolean(it.appendfsync) && it.appendfsync !== 'always'));
    updateText(part(panel, 'eviction'), it.maxmemoryPolicy === 'noeviction' ? t('redis.eviction.noeviction') : it.maxmemoryPolicy ?? t('unknown'));
    part(panel, 'eviction').classList.toggle('alarm', Boolean(it.maxmemoryPolicy) && it.maxmemoryPolicy !== 'noeviction');
    updateText(part(panel, 'clients'), number(it.connectedClients));
    updateText(part(panel, 'ops'), number(it.opsPerSecond));
}

// --- health, audit ------------------------------------------------------------------------------------

function markResult(element, ok) {
    if (element.dataset.ok === String(ok)) return;
    element.dataset.ok = String(ok);
    element.replaceChildren(icon(ok ? 'ok' : 'bad'), h('span', { class: 'unseen' }));
}

function health(snapshot) {
    const panel = byId('health');
    if (!present(panel, snapshot.health)) return;
    updateList(panel.querySelector('ul'), snapshot.health, (it) => it.part,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'name' }), h('span', { class: 'sub', 'data-part': 'detail' })),
        (row, { part: name, ok, detail }) => {
            updateAttribute(row, 'data-health', name);
            markResult(part(row, 'mark'), ok);
            updateText(part(row, 'mark').lastChild, `${t(ok ? 'health.ok' : 'health.bad')}:`);
            updateText(part(row, 'name'), name === 'redis' || name === 'postgres' || name === 'projection' || name === 'decisions' ? t(`part.${name}`) : name);
            updateText(part(row, 'detail'), ok ? detail || t('health.ok') : detail || t('health.bad'));
        });
}

let running = false;

/// Shows how far a running audit is: `progress` is null if none runs.
function auditProgress(panel, progress) {
    const bar = part(panel, 'progress');
    bar.hidden = !progress;
    if (!progress) return;
    part(panel, 'meter').style.setProperty('--share', progress.share);
    updateAttribute(bar, 'aria-valuenow', progress.expectedItems === null ? null : String(Math.floor(progress.share * 100)));
    const values = { share: share(progress.share, 1), n: number(progress.items), of: number(progress.expectedItems), t: counted(progress.etaSeconds ?? 0) };
    updateText(part(panel, 'rest'), t(progress.etaSeconds === null ? 'audit.begins' : 'audit.progress', values));
    updateText(part(panel, 'check'), progress.check);
    updateAttribute(bar, 'aria-valuetext', part(panel, 'rest').textContent);
}

/// Sets whether an audit started from this page is running.
export function setAuditRunning(runs, snapshot) {
    running = runs;
    if (snapshot) audit(snapshot);
}

function audit(snapshot) {
    const panel = byId('audit');
    const button = byId('run-audit');
    const busy = running || snapshot.audit?.running === true;
    updateAttribute(button, 'aria-disabled', busy ? 'true' : null);
    updateText(button, t(busy ? 'audit.running' : 'audit.run'));
    if (!present(panel, snapshot.audit)) return;
    auditProgress(panel, snapshot.audit.progress ?? null);
    const last = snapshot.audit.last;
    const text = part(panel, 'result');
    const details = panel.querySelector('details');
    details.hidden = !last;
    if (!last) {
        delete text.dataset.ok;
        updateText(text, t('audit.none'));
        updateText(part(panel, 'when'), '');
        return;
    }
    markResult(text, last.balanced);
    text.lastChild.className = '';
    updateText(text.lastChild, t(last.balanced ? 'audit.ok' : 'audit.bad'));
    updateText(part(panel, 'when'), t('audit.when', { at: moment(last.finishedAt, snapshot.at), n: last.checks?.length ?? 0, t: duration(last.seconds) }));
    updateAttribute(part(panel, 'when'), 'title', instant(last.finishedAt));
    // Failed checks come first.
    const checks = [...(last.checks ?? [])].sort((a, b) => a.ok - b.ok);
    updateList(panel.querySelector('.checks'), checks, ({ name }) => name,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'name' }), h('span', { class: 'sub', 'data-part': 'detail' })),
        (row, { name, ok, detail }) => {
            markResult(part(row, 'mark'), ok);
            updateText(part(row, 'mark').lastChild, `${t(ok ? 'health.ok' : 'health.bad')}:`);
            updateText(part(row, 'name'), name);
            updateText(part(row, 'detail'), detail);
        });
}

export function drawEngine(snapshot) {
    vitals(snapshot);
    traffic(snapshot);
    orders(snapshot);
    projection(snapshot);
    redis(snapshot);
    health(snapshot);
    audit(snapshot);
    const { instance, watchers } = snapshot;
    updateText(byId('footer'), instance ? t('footer', { name: instance.name, version: instance.version, since: moment(instance.startedAt, snapshot.at), watchers }) : '');
}
