// The status line at the top of the page: whether the sale has problems, and which.

import { counted, clock, duration, ms, number, rate, share, t } from './i18n.js';

/// Milliseconds that a problem stays on the page after its last occurrence, so that the line does not flicker.
const LINGER_MS = 5_000;

const SLOW_MS = 1_000;
const LAG_WARN_S = 5;
const LAG_BAD_S = 30;
const FULL_WARN = 0.5;
const FULL_BAD = 0.8;
const SOON_S = 60;
/// How long the status line tells of a recovery.
const RECOVERED_MS = 3_600_000;

const PARTS = ['health', 'rankings', 'campaigns', 'products', 'orders', 'requests', 'projection', 'redis', 'partitions', 'recoveries'];
const PART_TITLES = { health: 'health', rankings: 'rankings', campaigns: 'campaigns', products: 'stock', orders: 'orders', requests: 'traffic', projection: 'projection', redis: 'redis', partitions: 'part.decisions', recoveries: 'recoveries' };

/// Milliseconds after which an absent part is a problem. One snapshot without it is normal: a rate takes two readings.
const ABSENT_MS = 3_000;

const seen = new Map();
const absentSince = new Map();

/// `{level: 'waiting' | 'ok' | 'warn' | 'bad' | 'lost', headline, detail, only, problems, notes}`: `only` is the problem of the
/// headline, `problems` the others, each `{key, level, text, more?, action?}`. `kind` changes only when there is a new state to
/// announce.
export function assess(snapshot, lostSeconds) {
    if (!snapshot) return { level: 'waiting', kind: 'waiting', headline: t('status.waiting'), detail: '', only: null, problems: [], notes: [] };
    if (lostSeconds !== null) {
        const detail = t('status.lost.since', { t: counted(lostSeconds), at: clock(snapshot.at) });
        return { level: 'lost', kind: 'lost', headline: t('status.lost'), detail, only: null, problems: [], notes: [] };
    }
    const now = performance.now();
    for (const problem of findProblems(snapshot)) seen.set(problem.key, { ...problem, at: now });
    for (const [key, problem] of seen) if (now - problem.at > LINGER_MS) seen.delete(key);
    const problems = [...seen.values()].sort((a, b) => (a.level === b.level ? 0 : a.level === 'bad' ? -1 : 1));
    // Translated each time: the language may have changed.
    for (const problem of problems) problem.text = t(problem.message, problem.values());
    const level = problems.some((problem) => problem.level === 'bad') ? 'bad' : problems.length > 0 ? 'warn' : 'ok';
    const open = (snapshot.campaigns ?? []).filter((campaign) => campaign.state === 'OPEN');
    const perSecond = snapshot.requests?.perSecond ?? null;
    const idle = perSecond !== null && perSecond < 0.5;
    const worst = problems.filter((problem) => problem.level === level);
    // The headline names a single worst problem; of several it has the number.
    const only = worst.length === 1 ? worst[0] : null;
    const headline = level === 'ok' ? t(idle ? 'status.ok.idle' : 'status.ok') : only?.text ?? t(`status.${level}`, { n: worst.length });
    const detail = t('status.sum', {
        campaigns: open.length, rate: rate(perSecond), lag: duration(snapshot.projection?.lagSeconds),
    });
    return {
        level, headline, detail,
        kind: `${level} ${problems.map((problem) => problem.key).sort().join(' ')}`,
        only,
        problems: problems.filter((problem) => problem !== only),
        notes: collectNotes(snapshot, open),
    };
}

/// Forgets the problems of the session.
export function resetStatus() {
    seen.clear();
    absentSince.clear();
}

function* findProblems(snapshot) {
    const { requests, projection, redis } = snapshot;
    for (const { part, ok, detail } of snapshot.health ?? []) {
        if (ok) continue;
        const closed = part === 'decisions' ? snapshot.partitions?.closed ?? [] : [];
        if (closed.length > 0) {
            const values = () => ({ n: closed.length, count: number(snapshot.partitions.count), partitions: closed.map((it) => number(it.partition)).join(', ') });
            yield { key: 'part.decisions', level: 'bad', message: 'problem.closed', values, more: detail };
            continue;
        }
        const known = ['redis', 'postgres', 'projection', 'decisions'].includes(part);
        yield {
            key: `part.${part}`, level: 'bad', message: known ? `problem.part.${part}` : 'problem.part.other', values: () => ({ part }), more: detail,
        };
    }
    if (requests) {
        if (requests.failedPerSecond > 0) {
            const level = requests.failedPerSecond > requests.perSecond / 100 ? 'bad' : 'warn';
            yield { key: 'failed', level, message: 'problem.failed', values: () => ({ rate: rate(requests.failedPerSecond) }) };
        }
        if (requests.shedPerSecond > 0) {
            yield { key: 'shed', level: 'bad', message: 'problem.shed', values: () => ({ rate: rate(requests.shedPerSecond) }) };
        }
        if (requests.latency?.p99Ms > SLOW_MS) {
            yield { key: 'slow', level: 'warn', message: 'problem.slow', values: () => ({ p99: ms(requests.latency.p99Ms) }) };
        }
    }
    if (projection) {
        const { lagSeconds, lagEvents, maxBacklog, deadLetters } = projection;
        if (lagSeconds > LAG_WARN_S) {
            const level = lagSeconds > LAG_BAD_S ? 'bad' : 'warn';
            yield { key: 'lag', level, message: 'problem.lag', values: () => ({ t: duration(lagSeconds), n: number(lagEvents) }) };
        }
        if (maxBacklog > 0 && lagEvents / maxBacklog > FULL_WARN) {
            const level = lagEvents / maxBacklog > FULL_BAD ? 'bad' : 'warn';
            yield { key: 'backlog', level, message: 'problem.backlog', values: () => ({ share: share(lagEvents, maxBacklog) }) };
        }
        if (deadLetters > 0) {
            yield { key: 'dead', level: 'bad', message: 'problem.dead', values: () => ({ n: deadLetters }), action: 'dead' };
        }
    }
    if (snapshot.stuckPayments > 0) {
        yield { key: 'stuck', level: 'bad', message: 'problem.stuck', values: () => ({ n: snapshot.stuckPayments }), action: 'stuck' };
    }
    if (redis) {
        const { maxMemoryBytes: limit, usedMemoryBytes: used, maxmemoryPolicy: policy } = redis;
        if (limit > 0 && used / limit > FULL_BAD) {
            const level = used / limit > 0.95 ? 'bad' : 'warn';
            yield { key: 'memory', level, message: 'problem.memory', values: () => ({ share: share(used, limit) }) };
        }
        if (redis.aofLastWriteOk === false) yield { key: 'aofWrite', level: 'bad', message: 'problem.aofWrite', values: () => ({}) };
        if (redis.aofEnabled === false || (redis.appendfsync && redis.appendfsync !== 'always')) {
            yield { key: 'aof', level: 'bad', message: 'problem.aof', values: () => ({}) };
        }
        if (policy && policy !== 'noeviction') yield { key: 'eviction', level: 'bad', message: 'problem.eviction', values: () => ({ policy }) };
    }
    const audit = snapshot.audit?.last;
    if (audit && !audit.balanced) {
        const checks = (audit.checks ?? []).filter((check) => !check.ok).map((check) => check.name.split(':')[0]).join(', ');
        yield { key: 'audit', level: 'bad', message: 'problem.audit', values: () => ({ checks }) };
    }
    const now = performance.now();
    for (const part of PARTS) {
        if (snapshot[part] !== null && snapshot[part] !== undefined) absentSince.delete(part);
        else if (!absentSince.has(part)) absentSince.set(part, now);
    }
    const absent = [...absentSince].filter(([, since]) => now - since > ABSENT_MS).map(([part]) => part);
    // An unhealthy part explains absent values.
    if (absent.length > 0 && (snapshot.health ?? []).every(({ ok }) => ok)) {
        const names = () => absent.map((part) => t(PART_TITLES[part])).join(', ');
        yield { key: 'absent', level: 'warn', message: 'problem.absent', values: () => ({ parts: names() }) };
    }
}

// Information that is no problem.
function collectNotes(snapshot, open) {
    const list = [];
    const soon = open.filter((campaign) => campaign.secondsToEmpty !== null && campaign.secondsToEmpty < SOON_S && campaign.remainingQuantity > 0)
        .sort((a, b) => a.secondsToEmpty - b.secondsToEmpty)[0];
    if (soon) list.push({ key: 'soon', text: t('note.soon', { code: soon.couponCode, t: counted(soon.secondsToEmpty) }) });
    if (snapshot.requests?.limitedPerSecond > 0) list.push({ key: 'limited', text: t('note.limited', { rate: rate(snapshot.requests.limitedPerSecond) }) });
    const withheld = [...(snapshot.campaigns ?? []).map((campaign) => campaign.withheldQuantity), ...(snapshot.products ?? []).map((product) => product.withheld)];
    const recovering = (snapshot.recoveries ?? []).filter(({ outcome }) => outcome === 'RUNNING');
    if (recovering.length > 0) {
        const partitions = recovering.map(({ partition }) => number(partition)).join(', ');
        list.push({ key: 'recovering', text: t('note.recovering', { partitions }), action: 'recoveries' });
    }
    const recovered = (snapshot.recoveries ?? []).filter((it) => ['COMPLETE', 'WITHHELD'].includes(it.outcome) && snapshot.at - it.noticedAt < RECOVERED_MS);
    if (recovered.length > 0) list.push({ key: 'recovered', text: t('note.recovered', { n: recovered.length }), action: 'recoveries' });
    if (withheld.some((quantity) => quantity > 0)) list.push({ key: 'withheld', text: t('note.withheld'), action: 'withheld' });
    return list;
}
