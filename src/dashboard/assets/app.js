// The dashboard: signs in, follows the feed, and keeps the page telling the truth about it.
//
// words.js, i18n.js   what the page says, and how numbers are written
// api.js, feed.js     the session and the operators' API; the live feed
// status.js           whether the sale goes well, in words
// sale.js, engine.js  the panels; charts.js the history that they show
// acts.js, stories.js, dialogs.js   what operators do and look up

import { makeActs } from './acts.js';
import { Refused, session, whenUnauthorized } from './api.js';
import { drawCharts, history, makeCharts, restyleCharts } from './charts.js';
import { attribute, byId, each, h, icon, part, say } from './dom.js';
import { drawEngine, makeInstances } from './engine.js';
import { Feed } from './feed.js';
import { clock, counted, language, setLanguage, setZone, shopZone, t } from './i18n.js';
import { drawSale, makeFolds, makeTabs } from './sale.js';
import { forget, judge } from './status.js';

/// Without a snapshot for so long, the numbers are old, whatever the connection says.
const STALE_MS = 3_500;
const TOAST_MS = 6_000;

const root = document.documentElement;
const body = document.body;

let snapshot = null;
let arrived = 0;
let state = 'connecting';
let operator = null;

// --- what was chosen, and is remembered -----------------------------------------------------------

function remember(key, value) {
    try {
        if (value === null) localStorage.removeItem(`firstcome.${key}`);
        else localStorage.setItem(`firstcome.${key}`, value);
    } catch { /* A browser that keeps nothing. */ }
}

const THEMES = ['auto', 'light', 'dark'];
const theme = () => root.dataset.theme ?? 'auto';

function sayTheme() {
    const name = t(`theme.${theme()}`);
    say(byId('theme-text'), name);
    attribute(byId('theme'), 'aria-label', `${t('theme')}: ${name}`);
}

byId('theme').addEventListener('click', () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
    if (next === 'auto') delete root.dataset.theme;
    else root.dataset.theme = next;
    remember('theme', next === 'auto' ? null : next);
    sayTheme();
    restyleCharts();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', restyleCharts);

function speak(to) {
    setLanguage(to);
    const [other, name] = to === 'ko' ? ['en', 'English'] : ['ko', '한국어'];
    for (const button of [byId('language'), byId('sign-in-language')]) {
        button.lang = other;
        say(button, name);
    }
    sayTheme();
    sayOperator();
    say(byId('sign-in-lead'), t(byId('sign-in').dataset.again ? 'signIn.again' : 'signIn.lead'));
    say(byId('sign-in-error'), '');
    say(byId('clock-zone'), t('clock', { zone: shopZone() }));
    stayAwake();
    restyleCharts();
    draw();
}

function switchLanguage() {
    const to = language() === 'ko' ? 'en' : 'ko';
    remember('language', to);
    speak(to);
}
byId('language').addEventListener('click', switchLanguage);
byId('sign-in-language').addEventListener('click', switchLanguage);

// --- the wall ---------------------------------------------------------------------------------------

let awake = null;

// A screen on a wall is not to fall asleep; the lock is lost whenever the page is hidden.
function stayAwake() {
    const wanted = root.classList.contains('wall') && document.visibilityState === 'visible';
    if (wanted) navigator.wakeLock?.request('screen').then((lock) => { awake = lock; }, () => {});
    else awake?.release().catch(() => {});
}
addEventListener('visibilitychange', stayAwake);

function wall(on) {
    root.classList.toggle('wall', on);
    const path = location.pathname + location.search;
    globalThis.history.replaceState(null, '', on ? `${path}#wall` : path);
    if (on) {
        root.requestFullscreen?.().catch(() => {});
        byId('main').focus({ preventScroll: true });
    } else {
        if (document.fullscreenElement) document.exitFullscreen().catch(() => {});
        byId('wall').focus();
    }
    stayAwake();
    restyleCharts();
    draw();
}
byId('wall').addEventListener('click', () => wall(true));
byId('leave-wall').addEventListener('click', () => wall(false));
addEventListener('keydown', ({ key }) => {
    if (key === 'Escape' && root.classList.contains('wall') && !document.querySelector('dialog[open]')) wall(false);
});
// Leaving the full screen leaves the wall, as Escape there is the browser's.
addEventListener('fullscreenchange', () => {
    if (!document.fullscreenElement && root.classList.contains('wall')) wall(false);
});
let still = 0;
addEventListener('pointermove', () => {
    root.classList.add('moving');
    clearTimeout(still);
    still = setTimeout(() => root.classList.remove('moving'), 2_500);
});

byId('menu').addEventListener('click', () => {
    const shown = byId('tools').classList.toggle('is-open');
    attribute(byId('menu'), 'aria-expanded', String(shown));
});

// --- saying what came of an act -------------------------------------------------------------------

let toast = null;

function announce(text) {
    say(byId('announce'), text);
    toast?.remove();
    const mine = h('div', { class: 'toast', 'aria-hidden': 'true', text });
    toast = mine;
    body.append(mine);
    setTimeout(() => mine.remove(), TOAST_MS);
}

// --- drawing ------------------------------------------------------------------------------------------

/// Seconds without numbers, or null while they come.
const silence = () => {
    const quiet = performance.now() - arrived;
    return snapshot && (state !== 'live' || quiet > STALE_MS) ? quiet / 1000 : null;
};
/// The server's clock: the operator's own may be wrong.
const now = () => (snapshot ? snapshot.at + (performance.now() - arrived) : Date.now());

let spoken = '';

function drawStatus() {
    const lost = operator === null ? null : silence();
    // The wink of a reconnect is not worth a word.
    const judged = judge(snapshot, lost !== null && lost > STALE_MS / 1000 ? lost : null);
    attribute(byId('status'), 'data-level', judged.level);
    attribute(byId('status-icon'), 'href', `#i-${judged.level}`);
    say(byId('headline'), judged.headline);
    say(byId('detail'), judged.only?.more ? `${judged.only.more} · ${judged.detail}` : judged.detail);
    const lines = [
        // The headline has its words already.
        ...(judged.only?.act ? [{ ...judged.only, key: 'only', level: 'note', text: '', more: '' }] : []),
        ...judged.problems,
        ...judged.notes.map((note) => ({ ...note, level: 'note' })),
    ];
    each(byId('problems'), lines, ({ key }) => key,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'text' }), h('span', { class: 'sub', 'data-part': 'more' }), h('button', { class: 'link', type: 'button', 'data-part': 'act' })),
        (row, { level, text, more, act }) => {
            if (row.dataset.level !== level) {
                row.dataset.level = level;
                part(row, 'mark').replaceChildren(...(level === 'note' ? [] : [icon(level)]));
            }
            say(part(row, 'text'), text);
            say(part(row, 'more'), more ?? '');
            const button = part(row, 'act');
            button.hidden = !act;
            attribute(button, 'data-act', act ?? null);
            say(button, t(act === 'withheld' ? 'act.release' : 'projection.look'));
        });
    body.classList.toggle('is-stale', judged.level === 'lost');
    if (operator !== null && spoken !== `${language()} ${judged.kind}`) {
        spoken = `${language()} ${judged.kind}`;
        say(byId('announce'), [judged.headline, ...judged.problems.map(({ text }) => text)].join(' '));
    }
    const mark = { ok: '✓', warn: '▲', bad: '✕', lost: '…', waiting: '…' }[judged.level];
    const title = `${mark} firstcome ${t('title')}`;
    if (document.title !== title) document.title = title;
}

function drawConnection() {
    const quiet = silence();
    const shown = quiet === null ? state : 'lost';
    attribute(byId('connection'), 'data-state', shown);
    say(byId('connection-text'), shown === 'live' ? t('live') : quiet === null ? t('connecting') : t('lost', { t: counted(quiet) }));
    say(byId('clock'), snapshot ? clock(now()) : '–');
}

// A wall doesn't scroll: half a row is worse than none.
function fit() {
    for (const panel of document.querySelectorAll('#campaigns, #stock, #rankings')) {
        const { bottom } = panel.getBoundingClientRect();
        for (const row of panel.querySelectorAll('.campaign, tbody tr')) row.classList.toggle('no-room', row.getBoundingClientRect().bottom > bottom + 1);
    }
}

function draw() {
    drawStatus();
    drawConnection();
    if (!snapshot) return;
    drawSale(snapshot);
    drawEngine(snapshot);
    drawCharts();
    if (root.classList.contains('wall')) fit();
}

makeCharts(byId('chart-requests'), byId('chart-latency'));
makeTabs(() => snapshot && drawSale(snapshot));
makeFolds(() => snapshot && drawSale(snapshot));
makeInstances(() => snapshot && drawEngine(snapshot));
makeActs({ snapshot: () => snapshot, now, announce });

// --- the feed -----------------------------------------------------------------------------------------

const feed = new Feed({
    onSnapshot(it) {
        snapshot = it;
        arrived = performance.now();
        setZone(it.zone);
        say(byId('clock-zone'), t('clock', { zone: shopZone() }));
        history.add(it);
        draw();
    },
    onState(to) {
        state = to;
        drawConnection();
    },
    onExpired: () => signIn(true),
});
setInterval(() => {
    drawConnection();
    if (silence() !== null) drawStatus();
}, 500);
addEventListener('pagehide', () => operator !== null && history.keep());

// --- the session --------------------------------------------------------------------------------------

function sayOperator() {
    say(byId('operator'), operator ?? '');
    attribute(byId('operator'), 'title', operator === null ? null : t('signedInAs', { name: operator }));
}

function signedIn(who) {
    operator = who.operator;
    sayOperator();
    body.classList.remove('signed-out');
    restyleCharts();
    feed.start();
}

// A token is asked for.
let signingIn = false;

/// Asks for a token. `again` where a session ended under way: then the page stays as it is behind the question.
function signIn(again) {
    feed.stop();
    state = 'lost';
    const dialog = byId('sign-in');
    if (dialog.open) return;
    if (again) dialog.dataset.again = 'yes';
    else {
        delete dialog.dataset.again;
        body.classList.add('signed-out');
    }
    say(byId('sign-in-lead'), t(again ? 'signIn.again' : 'signIn.lead'));
    say(byId('sign-in-error'), '');
    signingIn = true;
    dialog.showModal();
    byId('token').focus();
}

// Nor does Escape wave it away; a browser may insist, the second time.
byId('sign-in').addEventListener('cancel', (event) => event.preventDefault());
byId('sign-in').addEventListener('close', () => {
    if (!signingIn) return;
    byId('sign-in').showModal();
    byId('token').focus();
});
byId('sign-in').querySelector('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const [token, button, error] = [byId('token'), byId('sign-in-button'), byId('sign-in-error')];
    if (button.disabled) return;
    button.disabled = true;
    say(error, '');
    attribute(token, 'aria-invalid', null);
    try {
        await session.signIn(token.value);
        const who = await session.read();
        if (who === null) throw new Refused(401, 'UNAUTHORIZED', '');
        token.value = '';
        signingIn = false;
        byId('sign-in').close();
        signedIn(who);
    } catch (refused) {
        say(error, t(refused.status === 401 || refused.status === 400 ? 'signIn.wrong' : refused.status === 429 ? 'signIn.slow' : 'signIn.failed'));
        attribute(token, 'aria-invalid', 'true');
        token.select();
        token.focus();
    } finally {
        button.disabled = false;
    }
});

byId('sign-out').addEventListener('click', async () => {
    try {
        await session.signOut();
    } catch (refused) {
        announce(t(refused.code === 'network' ? 'signIn.failed' : 'error.SERVICE_UNAVAILABLE'));
        return;
    }
    // Nothing of it is left behind for whoever sits down next.
    operator = null;
    history.forget();
    forget();
    feed.stop();
    location.reload();
});

whenUnauthorized(() => operator !== null && signIn(true));

async function begin() {
    speak(language());
    stayAwake();
    for (;;) {
        try {
            const who = await session.read();
            if (who === null) signIn(false);
            else {
                history.recall();
                signedIn(who);
            }
            return;
        } catch {
            // Away, or not there yet: the page says so, and tries again.
            say(byId('connection-text'), t('connecting'));
            await new Promise((resolve) => setTimeout(resolve, 2_000));
        }
    }
}
begin();
