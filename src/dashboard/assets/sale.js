// The panels of the sale itself: campaigns burning down, stock, and what sells best.

import { attribute, byId, each, h, icon, part, say } from './dom.js';
import { counted, moment, number, rate, share, t, won, wonShort } from './i18n.js';
import { history, line } from './charts.js';

/// The place of an act in a row: `data-act` and `data-id`, which acts.js listens to.
const act = (name, id, key) => h('button', { class: 'act', type: 'button', 'data-act': name, 'data-id': id, 'data-t': key, text: t(key) });

// --- campaigns --------------------------------------------------------------------------------------

const LIVE = { OPEN: 0, SCHEDULED: 1 };

function campaignRow() {
    return h('li', { class: 'campaign' },
        h('div', { class: 'campaign-name' },
            h('h3', { 'data-part': 'code' }),
            h('span', { class: 'state', 'data-part': 'state' }),
            h('p', { class: 'sub', 'data-part': 'terms' })),
        h('div', { class: 'campaign-left' },
            h('b', { 'data-part': 'left' }),
            h('span', { class: 'sub', 'data-part': 'total' })),
        h('div', { class: 'campaign-line', 'data-part': 'line', role: 'img' }),
        h('div', { class: 'campaign-pace' },
            h('b', { 'data-part': 'pace' }),
            h('span', { class: 'sub', 'data-part': 'rate' })),
        h('div', { class: 'burn', 'data-part': 'burn', 'aria-hidden': 'true' }, h('i', {})),
        h('p', { class: 'campaign-issued sub', 'data-part': 'issued' }),
        h('div', { class: 'campaign-acts', 'data-part': 'acts' }));
}

function campaign(row, it, snapshot) {
    const { state, couponId: id, remainingQuantity: left, totalQuantity: total, issuedQuantity: issued } = it;
    attribute(row, 'data-state', state);
    attribute(row, 'data-coupon', String(id));
    say(part(row, 'code'), it.couponCode);
    say(part(row, 'state'), t(`state.${state}`));
    const off = it.discountType === 'FIXED' ? t('discount.FIXED', { amount: won(it.discountAmount) }) : t('discount.PERCENTAGE', { n: number(it.discountAmount) });
    const when = state === 'SCHEDULED' ? t('campaign.opens', { at: moment(it.opensAt, snapshot.at) })
        : t(state === 'CLOSED' ? 'campaign.closed' : 'campaign.closes', { at: moment(it.closesAt, snapshot.at) });
    say(part(row, 'terms'), `${off} · ${when}`);
    say(part(row, 'left'), number(left));
    say(part(row, 'total'), t('campaign.left', { total: number(total) }));
    say(part(row, 'issued'), [
        t('campaign.issued', { n: number(issued), share: share(issued, total) }),
        it.withheldQuantity > 0 ? t('campaign.withheld', { n: number(it.withheldQuantity) }) : null,
    ].filter(Boolean).join(' · '));
    part(row, 'burn').firstChild.style.setProperty('--share', total > 0 ? left / total : 0);
    const opened = state === 'OPEN';
    say(part(row, 'pace'), state === 'SOLD_OUT' ? t('campaign.gone') : !opened ? '' : it.secondsToEmpty === null ? '' : t('campaign.empty', { t: counted(it.secondsToEmpty) }));
    say(part(row, 'rate'), opened ? (it.issuesPerSecond > 0 ? t('campaign.rate', { rate: rate(it.issuesPerSecond) }) : t('campaign.still')) : '');
    const points = history.left.get(id) ?? [];
    line(part(row, 'line'), points, history.at.at(-1), 0, total);
    attribute(part(row, 'line'), 'aria-label', t('campaign.line', { from: number(points[0]?.[1]), to: number(left) }));
    const acts = state === 'OPEN' ? [['close', 'campaign.close'], ['times', 'campaign.times']]
        : state === 'SCHEDULED' ? [['open', 'campaign.open'], ['times', 'campaign.times']]
        : state === 'CLOSED' && it.expiredAt > snapshot.at ? [['times', 'campaign.times']] : [];
    each(part(row, 'acts'), acts, ([name]) => name, ([name, key]) => act(name, id, key), (button, [, key]) => {
        attribute(button, 'aria-label', `${it.couponCode}: ${t(key)}`);
        say(button, t(key));
    });
}

const moving = ({ couponId, remainingQuantity }) => (history.left.get(couponId) ?? []).some(([, left]) => left !== remainingQuantity);

function campaigns(snapshot) {
    const panel = byId('campaigns');
    if (!present(panel, snapshot.campaigns)) return;
    const all = snapshot.campaigns;
    // What moved within the last minutes comes first, and stays in sight when it has ended: the end of a rush is what one came to see.
    const moved = new Set(all.filter(moving).map(({ couponId }) => couponId));
    const order = (it) => (it.state in LIVE ? 0 : 4) + (moved.has(it.couponId) ? 0 : 1) + (LIVE[it.state] ?? 0);
    const sorted = [...all].sort((a, b) => order(a) - order(b) || a.opensAt - b.opensAt || a.couponId - b.couponId);
    const shown = sorted.filter((it) => it.state in LIVE || moved.has(it.couponId));
    const rest = sorted.filter((it) => !shown.includes(it));
    const [list, folded] = panel.querySelectorAll('.campaigns');
    const update = (row, it) => {
        // Where there are many, those where nothing happens take less room.
        row.classList.toggle('calm', shown.length > 3 && !moved.has(it.couponId));
        campaign(row, it, snapshot);
    };
    each(list, shown, ({ couponId }) => couponId, campaignRow, update);
    panel.querySelector('.nothing').hidden = shown.length > 0;
    const details = panel.querySelector('details');
    // There may be hundreds: nobody looks at those that are folded away.
    each(folded, details.open ? rest : [], ({ couponId }) => couponId, campaignRow, update);
    details.hidden = rest.length === 0;
    say(details.querySelector('summary'), t('campaigns.ended', { n: rest.length }));
}

// --- stock ------------------------------------------------------------------------------------------

function productRow(it) {
    return h('tr', {},
        h('th', { scope: 'row' },
            h('span', { class: 'product', 'data-part': 'name' }), ' ',
            h('span', { class: 'sub', 'data-part': 'price' }),
            h('span', { class: 'stack', 'data-part': 'stack', 'aria-hidden': 'true' },
                h('i', { class: 'sold' }), h('i', { class: 'held' }), h('i', { class: 'withheld' }), h('i', { class: 'on-sale' }))),
        h('td', { class: 'number', 'data-part': 'onSale' }),
        h('td', { class: 'number', 'data-part': 'held' }),
        h('td', { class: 'number', 'data-part': 'sold' }),
        h('td', { class: 'control' }, h('button', { class: 'act', type: 'button', 'data-act': 'stock', 'data-id': it.productId, 'data-part': 'act' }, icon('plus'), h('span', { 'data-t': 'stock.act', text: t('stock.act') }))));
}

function product(row, it) {
    attribute(row, 'data-product', String(it.productId));
    row.classList.toggle('sold-out', it.onSale === 0);
    say(part(row, 'name'), it.productName);
    say(part(row, 'price'), [won(it.price), it.onSale === 0 ? t('stock.soldOut') : null, it.withheld > 0 ? `${t('stock.withheld')} ${number(it.withheld)}` : null].filter(Boolean).join(' · '));
    say(part(row, 'onSale'), number(it.onSale));
    say(part(row, 'held'), number(it.held));
    say(part(row, 'sold'), number(it.sold));
    const stack = part(row, 'stack');
    const all = it.onSale + it.held + it.sold + it.withheld || 1;
    [it.sold, it.held, it.withheld, it.onSale].forEach((units, place) => {
        stack.children[place].hidden = units === 0;
        stack.children[place].style.setProperty('flex-grow', units / all);
    });
    attribute(part(row, 'act'), 'aria-label', t('stock.actOf', { name: it.productName }));
}

function stock(snapshot) {
    const panel = byId('stock');
    if (!present(panel, snapshot.products)) return;
    each(panel.querySelector('tbody'), snapshot.products, ({ productId }) => productId, productRow, product);
    panel.querySelector('table').hidden = snapshot.products.length === 0;
    panel.querySelector('.nothing').hidden = snapshot.products.length > 0;
}

// --- rankings ---------------------------------------------------------------------------------------

let scope = 'TODAY';

function rankedRow() {
    return h('tr', {},
        h('td', { class: 'place', 'data-part': 'place' }),
        h('td', { class: 'move' }, h('span', { 'aria-hidden': 'true', 'data-part': 'arrow' }), h('span', { class: 'unseen', 'data-part': 'move' })),
        h('th', { scope: 'row', 'data-part': 'name' }),
        h('td', { class: 'number', 'data-part': 'units' }),
        h('td', { class: 'number', 'data-part': 'won' }));
}

function ranked(row, it) {
    attribute(row, 'data-product', String(it.productId));
    const moved = it.previousPosition === null ? null : it.previousPosition - it.rankPosition;
    attribute(row, 'data-move', moved === null ? 'new' : moved > 0 ? 'up' : moved < 0 ? 'down' : 'same');
    say(part(row, 'place'), number(it.rankPosition));
    say(part(row, 'arrow'), moved === null ? t('move.new.short') : moved > 0 ? `▲${moved}` : moved < 0 ? `▼${-moved}` : '·');
    say(part(row, 'move'), moved === null ? t('move.new') : moved > 0 ? t('move.up', { n: moved }) : moved < 0 ? t('move.down', { n: -moved }) : t('move.same'));
    say(part(row, 'name'), it.productName);
    say(part(row, 'units'), number(it.salesCount));
    say(part(row, 'won'), wonShort(it.totalSalesPrice));
    attribute(part(row, 'won'), 'title', won(it.totalSalesPrice));
}

function rankings(snapshot) {
    const panel = byId('rankings');
    if (!present(panel, snapshot.rankings)) return;
    const rows = snapshot.rankings[scope] ?? [];
    each(panel.querySelector('tbody'), rows, ({ productId }) => productId, rankedRow, ranked);
    say(panel.querySelector('caption'), t('rankings.caption', { scope: t(`scope.${scope}`) }));
    panel.querySelector('table').hidden = rows.length === 0;
    panel.querySelector('.nothing').hidden = rows.length > 0;
}

/// What is folded away is made when it is unfolded.
export function makeFolds(redraw) {
    byId('campaigns').querySelector('details').addEventListener('toggle', redraw);
}

/// Tabs as the ARIA practices have them: arrows move, one is in the tab order.
export function makeTabs(redraw) {
    const tabs = [...byId('rankings').querySelectorAll('[role="tab"]')];
    const choose = (tab) => {
        scope = tab.dataset.scope;
        for (const each of tabs) {
            attribute(each, 'aria-selected', String(each === tab));
            each.tabIndex = each === tab ? 0 : -1;
        }
        attribute(byId('ranking'), 'aria-labelledby', tab.id);
        redraw();
    };
    for (const tab of tabs) {
        tab.addEventListener('click', () => choose(tab));
        tab.addEventListener('keydown', ({ key }) => {
            const place = tabs.indexOf(tab);
            const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[key];
            if (to === undefined) return;
            const next = tabs.at(to % tabs.length);
            choose(next);
            next.focus();
        });
    }
}

/// Whether a part of the snapshot is there; a panel without it says so, and keeps what it last had.
export function present(panel, value) {
    const there = value !== null && value !== undefined;
    panel.classList.toggle('is-absent', !there);
    return there;
}

export function drawSale(snapshot) {
    campaigns(snapshot);
    stock(snapshot);
    rankings(snapshot);
}
