// The dashboard: signs in, follows the feed, and draws its snapshots.
//
// messages.js, i18n.js   the messages of the page, and the format of numbers
// api.js, feed.js        the session and the operators' API; the live feed
// status.js              the status line
// sale.js, engine.js, recoveries.js   the panels; charts.js the history that they show
// actions.js, dialogs.js the actions of operators; timeline.js, operator-log.js their look-ups; webhooks.js the receivers of events
// products.js            the list of products, and the page of one; sales.js, plan.js the plan of sales; forms.js their fields
// address.js             what the address of the page names

import { bindActions } from './actions.js';
import { openAddress, returnToAddress, takeRefusal } from './address.js';
import { ApiError, session, onUnauthorized } from './api.js';
import { addPast, addSnapshot, createCharts, drawCharts, forgetHistories, history, restyleCharts } from './charts.js';
import { updateAttribute, byId, updateList, h, icon, part, updateText } from './dom.js';
import { drawEngine, bindInstances } from './engine.js';
import { Feed } from './feed.js';
import { clock, counted, has, language, setLanguage, setZone, shopZone, t } from './i18n.js';
import { drawRecoveries } from './recoveries.js';
import { drawSale, bindFolds, bindTabs } from './sale.js';
import { resetStatus, assess } from './status.js';

/// Milliseconds without a snapshot after which the numbers are stale, whatever the state of the connection.
const STALE_MS = 3_500;
const TOAST_MS = 6_000;

const root = document.documentElement;
const body = document.body;

let snapshot = null;
let arrived = 0;
let state = 'connecting';
let operator = null;

// --- stored choices -------------------------------------------------------------------------------

function store(key, value) {
    try {
        if (value === null) localStorage.removeItem(`firstcome.${key}`);
        else localStorage.setItem(`firstcome.${key}`, value);
    } catch { /* No storage: the choice holds until the page is closed. */ }
}

const THEMES = ['auto', 'light', 'dark'];
const theme = () => root.dataset.theme ?? 'auto';

function updateTheme() {
    const name = t(`theme.${theme()}`);
    updateText(byId('theme-text'), name);
    updateAttribute(byId('theme'), 'aria-label', `${t('theme')}: ${name}`);
}

byId('theme').addEventListener('click', () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
    if (next === 'auto') delete root.dataset.theme;
    else root.dataset.theme = next;
    store('theme', next === 'auto' ? null : next);
    updateTheme();
    restyleCharts();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', restyleCharts);

function applyLanguage(to) {
    setLanguage(to);
    const [other, name] = to === 'ko' ? ['en', 'English'] : ['ko', '한국어'];
    for (const button of [byId('language'), byId('sign-in-language')]) {
        button.lang = other;
        updateText(button, name);
    }
    updateTheme();
    updateOperator();
    updateText(byId('sign-in-lead'), t(byId('sign-in').dataset.again ? 'signIn.again' : byId('sign-in-account').hidden ? 'signIn.lead' : 'signIn.lead.account'));
    updateText(byId('sign-in-error'), refusalText());
    updateText(byId('clock-zone'), t('clock', { zone: shopZone() }));
    updateWakeLock();
    restyleCharts();
    draw();
}

function switchLanguage() {
    const to = language() === 'ko' ? 'en' : 'ko';
    store('language', to);
    applyLanguage(to);
}
byId('language').addEventListener('click', switchLanguage);
byId('sign-in-language').addEventListener('click', switchLanguage);

// --- the wall ---------------------------------------------------------------------------------------

let wakeLock = null;

// A wall display must not sleep. The browser drops the lock whenever the page is hidden.
function updateWakeLock() {
    const wanted = root.classList.contains('wall') && document.visibilityState === 'visible';
    if (wanted) navigator.wakeLock?.request('screen').then((lock) => { wakeLock = lock; }, () => {});
    else wakeLock?.release().catch(() => {});
}
addEventListener('visibilitychange', updateWakeLock);

function setWall(on) {
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
    updateWakeLock();
    restyleCharts();
    draw();
}
byId('wall').addEventListener('click', () => setWall(true));
byId('leave-wall').addEventListener('click', () => setWall(false));
addEventListener('keydown', ({ key }) => {
    if (key === 'Escape' && root.classList.contains('wall') && !document.querySelector('dialog[open]')) setWall(false);
});
// The end of full screen ends the wall: in full screen the browser takes Escape.
addEventListener('fullscreenchange', () => {
    if (!document.fullscreenElement && root.classList.contains('wall')) setWall(false);
});
addEventListener('hashchange', () => snapshot !== null && openAddress());
let still = 0;
addEventListener('pointermove', () => {
    root.classList.add('moving');
    clearTimeout(still);
    still = setTimeout(() => root.classList.remove('moving'), 2_500);
});

byId('menu').addEventListener('click', () => {
    const shown = byId('tools').classList.toggle('is-open');
    updateAttribute(byId('menu'), 'aria-expanded', String(shown));
});

// --- announcements --------------------------------------------------------------------------------

let toast = null;

function announce(text) {
    updateText(byId('announce'), text);
    toast?.remove();
    const current = h('div', { class: 'toast', 'aria-hidden': 'true', text });
    toast = current;
    body.append(current);
    setTimeout(() => current.remove(), TOAST_MS);
}

// --- drawing ------------------------------------------------------------------------------------------

/// Seconds since the last snapshot; null while the feed is live.
const staleSeconds = () => {
    const quiet = performance.now() - arrived;
    return snapshot && (state !== 'live' || quiet > STALE_MS) ? quiet / 1000 : null;
};
/// The server's clock in milliseconds: the operator's own may be wrong.
const now = () => (snapshot ? snapshot.at + (performance.now() - arrived) : Date.now());

let announced = '';

function drawStatus() {
    const lost = operator === null ? null : staleSeconds();
    // A short reconnect is not shown as a loss.
    const status = assess(snapshot, lost !== null && lost > STALE_MS / 1000 ? lost : null);
    updateAttribute(byId('status'), 'data-level', status.level);
    updateAttribute(byId('status-icon'), 'href', `#i-${status.level}`);
    updateText(byId('headline'), status.headline);
    updateText(byId('detail'), status.only?.more ? `${status.only.more} · ${status.detail}` : status.detail);
    const lines = [
        // The headline has the text of this problem; the line has its action.
        ...(status.only?.action ? [{ ...status.only, key: 'only', level: 'note', text: '', more: '' }] : []),
        ...status.problems,
        ...status.notes.map((note) => ({ ...note, level: 'note' })),
    ];
    updateList(byId('problems'), lines, ({ key }) => key,
        () => h('li', {}, h('span', { class: 'mark', 'data-part': 'mark' }), h('span', { 'data-part': 'text' }), h('span', { class: 'sub', 'data-part': 'more' }), h('button', { class: 'link', type: 'button', 'data-part': 'action' })),
        (row, { level, text, more, action }) => {
            if (row.dataset.level !== level) {
                row.dataset.level = level;
                part(row, 'mark').replaceChildren(...(level === 'note' ? [] : [icon(level)]));
            }
            updateText(part(row, 'text'), text);
            updateText(part(row, 'more'), more ?? '');
            const button = part(row, 'action');
            button.hidden = !action;
            updateAttribute(button, 'data-action', action ?? null);
            updateText(button, t(action === 'withheld' ? 'action.release' : 'projection.look'));
        });
    body.classList.toggle('is-stale', status.level === 'lost');
    if (operator !== null && announced !== `${language()} ${status.kind}`) {
        announced = `${language()} ${status.kind}`;
        updateText(byId('announce'), [status.headline, ...status.problems.map(({ text }) => text)].join(' '));
    }
    const symbol = { ok: '✓', warn: '▲', bad: '✕', lost: '…', waiting: '…' }[status.level];
    const title = `${symbol} firstcome ${t('title')}`;
    if (document.title !== title) document.title = title;
}

function drawConnection() {
    const stale = staleSeconds();
    const shown = stale === null ? state : 'lost';
    updateAttribute(byId('connection'), 'data-state', shown);
    updateText(byId('connection-text'), shown === 'live' ? t('live') : stale === null ? t('connecting') : t('lost', { t: counted(stale) }));
    updateText(byId('clock'), snapshot ? clock(now()) : '–');
}

// A wall does not scroll: rows without room are hidden.
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
    drawRecoveries(snapshot);
    drawCharts();
    if (root.classList.contains('wall')) fit();
}

createCharts(byId('chart-requests'), byId('chart-latency'));
bindTabs(() => snapshot && drawSale(snapshot));
bindFolds(() => snapshot && drawSale(snapshot));
bindInstances(() => snapshot && draw());
bindActions({ snapshot: () => snapshot, now, onResult: announce });

// --- the feed -----------------------------------------------------------------------------------------

const feed = new Feed({
    onSnapshot(it) {
        const first = snapshot === null;
        snapshot = it;
        arrived = performance.now();
        setZone(it.zone);
        updateText(byId('clock-zone'), t('clock', { zone: shopZone() }));
        addSnapshot(it);
        draw();
        // Only now the page knows the shop's zone and time.
        if (first) openAddress();
    },
    onHistory: addPast,
    onState(to) {
        state = to;
        drawConnection();
    },
    onExpired: () => signIn(true),
});
setInterval(() => {
    drawConnection();
    if (staleSeconds() !== null) drawStatus();
}, 500);
addEventListener('pagehide', () => operator !== null && history.save());

// --- the session --------------------------------------------------------------------------------------

function updateOperator() {
    const [name, role] = operator === null ? ['', ''] : [operator.name, t(`role.${operator.role}`)];
    updateText(byId('operator-name'), name);
    updateText(byId('operator-role'), role);
    updateAttribute(byId('operator'), 'title', operator === null ? null : t('signedInAs', { name, role }));
    // Buttons that need another role are hidden: app.css. The service decides.
    updateAttribute(body, 'data-role', operator === null ? null : operator.role);
}

function signedIn(current) {
    operator = { name: current.operator, role: current.role };
    updateOperator();
    body.classList.remove('signed-out');
    restyleCharts();
    feed.start();
}

// Whether the sign-in dialog is open.
let signingIn = false;
// Why the sign-in with the company's account was refused; null if it was not.
let refused = takeRefusal();
const refusalText = () => (refused === null ? '' : t(has(`signIn.refused.${refused}`) ? `signIn.refused.${refused}` : 'signIn.failed'));

/// Shows the ways to sign in that the service has.
async function showWays() {
    const ways = await session.ways().catch(() => ({ token: true, oidc: false }));
    byId('sign-in-account').hidden = !ways.oidc;
    // Without tokens the token's field stays only where there is no other way.
    for (const element of [byId('token'), byId('token-label'), byId('sign-in-button')]) element.hidden = ways.oidc && !ways.token;
    updateText(byId('sign-in-lead'), t(byId('sign-in').dataset.again ? 'signIn.again' : ways.oidc ? 'signIn.lead.account' : 'signIn.lead'));
    if (ways.oidc && !ways.token) byId('sign-in-account').focus();
}

/// Asks for a token. `again`: the session has ended, and the page stays visible behind the dialog.
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
    updateText(byId('sign-in-lead'), t(again ? 'signIn.again' : 'signIn.lead'));
    updateText(byId('sign-in-error'), refusalText());
    signingIn = true;
    dialog.showModal();
    byId('token').focus();
    showWays();
}
byId('sign-in-account').addEventListener('click', () => returnToAddress.save());

// Escape does not close the dialog. Where the browser closes it anyway, it opens again.
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
    refused = null;
    updateText(error, '');
    updateAttribute(token, 'aria-invalid', null);
    try {
        await session.signIn(token.value);
        const current = await session.read();
        if (current === null) throw new ApiError(401, 'UNAUTHORIZED', '');
        token.value = '';
        signingIn = false;
        byId('sign-in').close();
        signedIn(current);
    } catch (failure) {
        updateText(error, t(failure.status === 401 || failure.status === 400 ? 'signIn.wrong' : failure.status === 429 ? 'signIn.slow' : 'signIn.failed'));
        updateAttribute(token, 'aria-invalid', 'true');
        token.select();
        token.focus();
    } finally {
        button.disabled = false;
    }
});

byId('sign-out').addEventListener('click', async () => {
    try {
        await session.signOut();
    } catch (failure) {
        announce(t(failure.code === 'network' ? 'signIn.failed' : 'error.SERVICE_UNAVAILABLE'));
        return;
    }
    // The next user of this browser must not see any of it.
    operator = null;
    forgetHistories();
    resetStatus();
    feed.stop();
    location.reload();
});

onUnauthorized(() => operator !== null && signIn(true));

async function begin() {
    applyLanguage(language());
    updateWakeLock();
    for (;;) {
        try {
            const current = await session.read();
            if (current === null) signIn(false);
            else {
                history.load();
                returnToAddress.restore();
                signedIn(current);
                if (refused !== null) announce(refusalText());
                refused = null;
            }
            return;
        } catch {
            // The service is unreachable: shows it, and retries.
            updateText(byId('connection-text'), t('connecting'));
            await new Promise((resolve) => setTimeout(resolve, 2_000));
        }
    }
}
begin();
