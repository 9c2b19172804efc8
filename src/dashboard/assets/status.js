// Is the sale going well? The judgement in words that the page begins with.

import { counted, clock, duration, ms, number, rate, share, t } from './i18n.js';

/// What was wrong stays on the page for so long after it was last seen, so that the line does not flicker.
const LINGER_MS = 5_000;

const SLOW_MS = 1_000;
const LAG_WARN_S = 5;
const LAG_BAD_S = 30;
const FULL_WARN = 0.5;
const FULL_BAD = 0.8;
const SOON_S = 60;

const PARTS = ['health', 'rankings', 'campaigns', 'products', 'orders', 'requests', 'projection', 'redis'];
const PART_TITLES = { health: 'health', rankings: 'rankings', campaigns: 'campaigns', products: 'stock', orders: 'orders', requests: 'traffic', projection: 'projection', redis: 'redis' };

/// A part that is missing from one snapshot alone is no news: a rate takes two readings.
const MISSED_MS = 3_000;

const seen = new Map();
const missedSince = new Map();

/// `{level: 'waiting' | 'ok' | 'warn' | 'bad' | 'lost', headline, detail, only, problems, notes}`: `only` is the problem that the
/// headline says, `problems` the others, each `{key, level, text, more?, act?}`; `kind` changes only where there is something new
/// to say aloud.
export function judge(snapshot, lostSeconds) {
    if (!snapshot) return { level: 'waiting', kind: 'waiting', headline: t('status.waiting'), detail: '', only: null, problems: [], notes: [] };
    if (lostSeconds !== null) {
        const detail = t('status.lost.since', { t: counted(lostSeconds), at: clock(snapshot.at) });
        return { level: 'lost', kind: 'lost', headline: t('status.lost'), detail, only: null, problems: [], notes: [] };
    }
    const now = performance.now();
    for (const problem of wrong(snapshot)) seen.set(problem.key, { ...problem, at: now });
    for (const [key, problem] of seen) if (now - problem.at > LINGER_MS) seen.delete(key);
    const problems = [...seen.values()].sort((a, b) => (a.level === b.level ? 0 : a.level === 'bad' ? -1 : 1));
    // Said again rather than kept: the language may have changed.
    for (const problem of problems) problem.text = t(problem.say, problem.values());
    const level = problems.some((problem) => problem.level === 'bad') ? 'bad' : problems.length > 0 ? 'warn' : 'ok';
    const open = (snapshot.campaigns ?? []).filter((campaign) => campaign.state === 'OPEN');
    const perSecond = snapshot.requests?.perSecond ?? null;
    const idle = perSecond !== null && perSecond < 0.5;
    const worst = problems.filter((problem) => problem.level === level);
    // One thing that is worse than the rest is what the line says; of several it says how many.
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
        notes: notes(snapshot, open),
    };
}

export function forget() {
    seen.clear();
    missedSince.clear();
}

function* wrong(snapshot) {
    const { requests, projection, redis } = snapshot;
    for (const { part, ok, detail } of snapshot.health ?? []) {
        if (ok) continue;
        const known = ['redis', 'postgres', 'projection', 'decisions'].includes(part);
        yield {
            key: `part.${part}`, level: 'bad', say: known ? `problem.part.${part}` : 'problem.part.other', values: () => ({ part }), more: detail,
        };
    }
    if (requests) {
        if (requests.failedPerSecond > 0) {
            const level = requests.failedPerSecond > requests.perSecond / 100 ? 'bad' : 'warn';
            yield { key: 'failed', level, say: 'problem.failed', values: () => ({ rate: rate(requests.failedPerSecond) }) };
        }
        if (requests.shedPerSecond > 0) {
            yield { key: 'shed', level: 'bad', say: 'problem.shed', values: () => ({ rate: rate(requests.shedPerSecond) }) };
        }
        if (requests.latency?.p99Ms > SLOW_MS) {
            yield { key: 'slow', level: 'warn', say: 'problem.slow', values: () => ({ p99: ms(requests.latency.p99Ms) }) };
        }
    }
    if (projection) {
        const { lagSeconds, lagEvents, maxBacklog, deadLetters } = projection;
        if (lagSeconds > LAG_WARN_S) {
            const level = lagSeconds > LAG_BAD_S ? 'bad' : 'warn';
            yield { key: 'lag', level, say: 'problem.lag', values: () => ({ t: duration(lagSeconds), n: number(lagEvents) }) };
        }
        if (maxBacklog > 0 && lagEvents / maxBacklog > FULL_WARN) {
            const level = lagEvents / maxBacklog > FULL_BAD ? 'bad' : 'warn';
            yield { key: 'backlog', level, say: 'problem.backlog', values: () => ({ share: share(lagEvents, maxBacklog) }) };
        }
        if (deadLetters > 0) {
            yield { key: 'dead', level: 'bad', say: 'problem.dead', values: () => ({ n: deadLetters }), act: 'dead' };
        }
    }
    if (snapshot.stuckPayments > 0) {
        yield { key: 'stuck', level: 'bad', say: 'problem.stuck', values: () => ({ n: snapshot.stuckPayments }), act: 'stuck' };
    }
    if (redis) {
        const { maxMemoryBytes: most, usedMemoryBytes: used, maxmemoryPolicy: policy } = redis;
        if (most > 0 && used / most > FULL_BAD) {
            const level = used / most > 0.95 ? 'bad' : 'warn';
            yield { key: 'memory', level, say: 'problem.memory', values: () => ({ share: share(used, most) }) };
        }
        if (redis.aofLastWriteOk === false) yield { key: 'aofWrite', level: 'bad', say: 'problem.aofWrite', values: () => ({}) };
        if (redis.aofEnabled === false || (redis.appendfsync && redis.appendfsync !== 'always')) {
            yield { key: 'aof', level: 'bad', say: 'problem.aof', values: () => ({}) };
        }
        if (policy && policy !== 'noeviction') yield { key: 'eviction', level: 'bad', say: 'problem.eviction', values: () => ({ policy }) };
    }
    const audit = snapshot.audit?.last;
    if (audit && !audit.balanced) {
        const checks = (audit.checks ?? []).filter((check) => !check.ok).map((check) => check.name.split(':')[0]).join(', ');
        yield { key: 'audit', level: 'bad', say: 'problem.audit', values: () => ({ checks }) };
    }
    const now = performance.now();
    for (const part of PARTS) {
        if (snapshot[part] !== null && snapshot[part] !== undefined) missedSince.delete(part);
        else if (!missedSince.has(part)) missedSince.set(part, now);
    }
    const absent = [...missedSince].filter(([, since]) => now - since > MISSED_MS).map(([part]) => part);
    // Where a part is known to be away, that is why.
    if (absent.length > 0 && (snapshot.health ?? []).every(({ ok }) => ok)) {
        const names = () => absent.map((part) => t(PART_TITLES[part])).join(', ');
        yield { key: 'absent', level: 'warn', say: 'problem.absent', values: () => ({ parts: names() }) };
    }
}

// Worth knowing, and nothing to worry about.
function notes(snapshot, open) {
    const said = [];
    const soon = open.filter((campaign) => campaign.secondsToEmpty !== null && campaign.secondsToEmpty < SOON_S && campaign.remainingQuantity > 0)
        .sort((a, b) => a.secondsToEmpty - b.secondsToEmpty)[0];
    if (soon) said.push({ key: 'soon', text: t('note.soon', { code: soon.couponCode, t: counted(soon.secondsToEmpty) }) });
    if (snapshot.requests?.limitedPerSecond > 0) said.push({ key: 'limited', text: t('note.limited', { rate: rate(snapshot.requests.limitedPerSecond) }) });
    const withheld = [...(snapshot.campaigns ?? []).map((campaign) => campaign.withheldQuantity), ...(snapshot.products ?? []).map((product) => product.withheld)];
    if (withheld.some((quantity) => quantity > 0)) said.push({ key: 'withheld', text: t('note.withheld'), act: 'withheld' });
    return said;
}
