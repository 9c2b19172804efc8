// The panels of what carries the sale: requests, orders, the projection, Redis, the parts, the audit.

import { attribute, byId, each, h, icon, part, say } from './dom.js';
import { bytes, duration, instant, moment, ms, number, rate, refusal, share, t } from './i18n.js';
import { history, trace } from './charts.js';
import { present } from './sale.js';

// --- the few numbers at the top -----------------------------------------------------------------------

function vital(name, figure, sub, field, alarm = false) {
    const box = byId('vitals').querySelector(`[data-part="${name}"]`);
    say(box.querySelector('.figure'), figure);
    say(box.querySelector('.sub'), sub);
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

// A path may go on in the next line after each of its slashes.
const breakable = (path) => path.split(/(?<=\/)/).flatMap((piece) => [piece, h('wbr')]);

/// The instance whose requests are shown by themselves; that of none is all of them together.
let alone = '';

const instanceKey = ({ name, startedAt }) => `${name} ${startedAt}`;
const instanceNames = ({ name, version, startedAt }, at) => t('instances.one', { name, version, since: moment(startedAt, at) });

/// Calls `redraw` when another instance is chosen.
export function makeInstances(redraw) {
    byId('instance').addEventListener('change', ({ target }) => {
        alone = target.value;
        redraw();
    });
}

/// The instances, and the requests of those that are chosen.
function instances(snapshot) {
    const all = snapshot.instances ?? [];
    const several = all.length > 1;
    byId('instances').hidden = !several;
    byId('instance').parentElement.hidden = !several;
    byId('instances-unknown').hidden = snapshot.instances !== null;
    const chosen = several ? all.find((it) => instanceKey(it) === alone) : undefined;
    if (!chosen) alone = '';
    each(byId('instance'), [null, ...all], (it) => (it ? instanceKey(it) : ''),
        (it) => h('option', { value: it ? instanceKey(it) : '' }),
        (row, it) => say(row, it ? it.name : t('instances.all', { n: all.length })));
    if (byId('instance').value !== alone) byId('instance').value = alone;
    each(byId('instances').querySelector('tbody'), all, instanceKey,
        () => h('tr', { 'data-instance': '' }, h('th', { scope: 'row', 'data-part': 'name' }), ...figures()),
        (row, it) => {
            attribute(row, 'data-instance', it.name);
            say(part(row, 'name'), instanceNames(it, snapshot.at));
            sayFigures(row, it.requests, it.requests?.latency);
        });
    return chosen ? chosen.requests : snapshot.requests;
}

const figures = () => ['rate', 'refused', 'failed', 'p50', 'p95', 'p99'].map((name) => h('td', { class: name === 'p50' || name === 'p95' ? 'number spare' : 'number', 'data-part': name }));

function sayFigures(row, it, latency) {
    say(part(row, 'rate'), rate(it?.perSecond));
    say(part(row, 'refused'), rate(it?.refusedPerSecond));
    say(part(row, 'failed'), rate(it?.failedPerSecond));
    part(row, 'failed').classList.toggle('alarm', it?.failedPerSecond > 0);
    for (const name of ['p50', 'p95', 'p99']) say(part(row, name), ms(latency?.[`${name}Ms`]));
}

function traffic(snapshot) {
    const requests = instances(snapshot);
    present(byId('routes'), requests);
    if (!present(byId('traffic'), requests)) return;
    const kinds = requests.refusals.filter(({ perSecond }) => perSecond > 0);
    const high = kinds[0]?.perSecond || 1;
    each(byId('refusals'), kinds, ({ errorCode }) => errorCode,
        () => h('li', {}, h('span', { class: 'reason', 'data-part': 'reason' }), h('span', { class: 'code', 'data-part': 'code' }), h('b', { 'data-part': 'rate' }), h('span', { class: 'meter', 'aria-hidden': 'true' }, h('i', { 'data-part': 'meter' }))),
        (row, { errorCode, perSecond }) => {
            const name = refusal(errorCode);
            say(part(row, 'reason'), name);
            say(part(row, 'code'), name === errorCode ? '' : errorCode);
            say(part(row, 'rate'), rate(perSecond));
            part(row, 'meter').style.setProperty('--share', perSecond / high);
        });
    byId('no-refusals').hidden = kinds.length > 0;

    byId('by-route').hidden = requests.routes.length === 0;
    byId('routes').querySelector('.nothing').hidden = requests.routes.length > 0;
    each(byId('by-route').querySelector('tbody'), requests.routes, ({ method, route }) => `${method} ${route}`,
        ({ method, route }) => h('tr', {}, h('th', { scope: 'row' }, h('span', { class: 'method', text: method }), ' ', h('span', {}, ...breakable(route))), ...figures()),
        (row, it) => sayFigures(row, it, it));
}

// --- orders -------------------------------------------------------------------------------------------

const STATUSES = { PAID: 'paid', PENDING: 'pending', FAILED: 'failed', CANCELLED: 'cancelled' };

function orders(snapshot) {
    const panel = byId('orders');
    say(part(panel, 'stuck'), number(snapshot.stuckPayments));
    part(panel, 'stuck').classList.toggle('alarm', snapshot.stuckPayments > 0);
    if (!present(panel, snapshot.orders)) return;
    let all = 0;
    for (const [status, name] of Object.entries(STATUSES)) {
        const count = snapshot.orders[status] ?? 0;
        all += count;
        say(part(panel, status), number(count));
        const piece = panel.querySelector(`.split .${name}`);
        piece.hidden = count === 0;
        piece.style.setProperty('flex-grow', count);
    }
    say(byId('orders-total'), t('orders.total', { n: number(all) }));
}

// --- the projection, Redis ----------------------------------------------------------------------------

function projection(snapshot) {
    const panel = byId('projection');
    const it = snapshot.projection;
    if (!present(panel, it)) return;
    say(part(panel, 'lag'), duration(it.lagSeconds));
    say(part(panel, 'events'), number(it.lagEvents));
    part(panel, 'meter').style.setProperty('--share', it.maxBacklog > 0 ? Math.min(1, it.lagEvents / it.maxBacklog) : 0);
    say(part(panel, 'backlog'), t('projection.backlog', { share: share(it.lagEvents, it.maxBacklog), max: number(it.maxBacklog) }));
    say(part(panel, 'rate'), rate(it.eventsPerSecond));
    say(part(panel, 'dead'), number(it.deadLetters));
    part(panel, 'dead').classList.toggle('alarm', it.deadLetters > 0);
}

function kept(redis) {
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
    say(part(panel, 'version'), it.version ?? '');
    say(part(panel, 'memory'), bytes(it.usedMemoryBytes));
    part(panel, 'meter').style.setProperty('--share', limited ? Math.min(1, it.usedMemoryBytes / it.maxMemoryBytes) : 0);
    say(part(panel, 'limit'), limited ? t('redis.memory.max', { share: share(it.usedMemoryBytes, it.maxMemoryBytes), max: bytes(it.maxMemoryBytes) }) : t('redis.memory.free'));
    say(part(panel, 'kept'), kept(it));
    part(panel, 'kept').classList.toggle('alarm', it.aofEnabled === false || it.aofLastWriteOk === false || (Boolean(it.appendfsync) && it.appendfsync !== 'always'));
    say(part(panel, 'eviction'), it.maxmemoryPolicy === 'noeviction' ? t('redis.eviction.noeviction') : it.maxmemoryPolicy ?? t('unknown'));
    part(panel, 'eviction').classList.toggle('alarm', Boolean(it.maxmemoryPolicy) && it.maxmemoryPolicy !== 'noeviction');
    say(part(panel, 'clients'), number(it.connectedClients));
    say(part(panel, 'ops'), number(it.opsPerSecond));
}

// --- the parts, the audit -----------------------------------------------------------------------------

function verdict(element, ok) {
    if (element.dataset.ok === String(ok)) return;
    element.dataset.ok = String(ok);
    element.replaceChildren(icon(ok ? 'ok' : 'bad'), h('span', { class: 'unseen' }));
}

function health(snapshot) {
    const panel = byId('health');
    if (!present(panel, snapshot.health)) return;
    each(panel.querySelector('ul'), snapshot.health, (it) => it.part,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'name' }), h('span', { class: 'sub', 'data-part': 'detail' })),
        (row, { part: name, ok, detail }) => {
            attribute(row, 'data-health', name);
            verdict(part(row, 'mark'), ok);
            say(part(row, 'mark').lastChild, `${t(ok ? 'health.ok' : 'health.bad')}:`);
            say(part(row, 'name'), name === 'redis' || name === 'postgres' || name === 'projection' || name === 'decisions' ? t(`part.${name}`) : name);
            say(part(row, 'detail'), ok ? detail || t('health.ok') : detail || t('health.bad'));
        });
}

let running = false;

/// An audit that was asked for from this page, and has not been answered.
export function auditRuns(runs, snapshot) {
    running = runs;
    if (snapshot) audit(snapshot);
}

function audit(snapshot) {
    const panel = byId('audit');
    const button = byId('run-audit');
    const busy = running || snapshot.audit?.running === true;
    attribute(button, 'aria-disabled', busy ? 'true' : null);
    say(button, t(busy ? 'audit.running' : 'audit.run'));
    if (!present(panel, snapshot.audit)) return;
    const last = snapshot.audit.last;
    const words = part(panel, 'verdict');
    const details = panel.querySelector('details');
    details.hidden = !last;
    if (!last) {
        delete words.dataset.ok;
        say(words, t('audit.none'));
        say(part(panel, 'when'), '');
        return;
    }
    verdict(words, last.balanced);
    words.lastChild.className = '';
    say(words.lastChild, t(last.balanced ? 'audit.ok' : 'audit.bad'));
    say(part(panel, 'when'), t('audit.when', { at: moment(last.finishedAt, snapshot.at), n: last.checks?.length ?? 0, t: duration(last.seconds) }));
    attribute(part(panel, 'when'), 'title', instant(last.finishedAt));
    // What is wrong comes first.
    const checks = [...(last.checks ?? [])].sort((a, b) => a.ok - b.ok);
    each(panel.querySelector('.checks'), checks, ({ name }) => name,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'name' }), h('span', { class: 'sub', 'data-part': 'detail' })),
        (row, { name, ok, detail }) => {
            verdict(part(row, 'mark'), ok);
            say(part(row, 'mark').lastChild, `${t(ok ? 'health.ok' : 'health.bad')}:`);
            say(part(row, 'name'), name);
            say(part(row, 'detail'), detail);
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
    say(byId('footer'), instance ? t('footer', { name: instance.name, version: instance.version, since: moment(instance.startedAt, snapshot.at), watchers }) : '');
}
