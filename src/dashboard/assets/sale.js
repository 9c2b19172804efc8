// The panels of the sale: campaigns, stock and rankings.

import { updateAttribute, byId, updateList, h, icon, part, updateText } from './dom.js';
import { conditionsText, discountText } from './forms.js';
import { counted, moment, number, rate, share, t, won, wonShort } from './i18n.js';
import { history, line } from './charts.js';

/// The button of an action in a row: actions.js listens to `data-action` and `data-id`.
const actionButton = (name, id, key) => h('button', { class: 'action', type: 'button', 'data-needs': 'operator', 'data-action': name, 'data-id': id, 'data-t': key, text: t(key) });

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
        h('div', { class: 'campaign-actions', 'data-part': 'actions' }));
}

function campaign(row, it, snapshot) {
    const { state, couponId: id, remainingQuantity: left, totalQuantity: total, issuedQuantity: issued } = it;
    updateAttribute(row, 'data-state', state);
    updateAttribute(row, 'data-coupon', String(id));
    updateText(part(row, 'code'), it.couponCode);
    updateText(part(row, 'state'), t(`state.${state}`));
    const when = state === 'SCHEDULED' ? t('campaign.opens', { at: moment(it.opensAt, snapshot.at) })
        : t(state === 'CLOSED' ? 'campaign.closed' : 'campaign.closes', { at: moment(it.closesAt, snapshot.at) });
    updateText(part(row, 'terms'), [discountText(it), conditionsText(it), when].filter(Boolean).join(' · '));
    updateText(part(row, 'left'), number(left));
    updateText(part(row, 'total'), t('campaign.left', { total: number(total) }));
    updateText(part(row, 'issued'), [
        t('campaign.issued', { n: number(issued), share: share(issued, total) }),
        it.withheldQuantity > 0 ? t('campaign.withheld', { n: number(it.withheldQuantity) }) : null,
    ].filter(Boolean).join(' · '));
    part(row, 'burn').firstChild.style.setProperty('--share', total > 0 ? left / total : 0);
    const opened = state === 'OPEN';
    updateText(part(row, 'pace'), state === 'SOLD_OUT' ? t('campaign.gone') : !opened ? '' : it.secondsToEmpty === null ? '' : t('campaign.empty', { t: counted(it.secondsToEmpty) }));
    updateText(part(row, 'rate'), opened ? (it.issuesPerSecond > 0 ? t('campaign.rate', { rate: rate(it.issuesPerSecond) }) : t('campaign.still')) : '');
    const points = history.left.get(id) ?? [];
    line(part(row, 'line'), points, history.at.at(-1), 0, total);
    updateAttribute(part(row, 'line'), 'aria-label', t('campaign.line', { from: number(points[0]?.[1]), to: number(left) }));
    const actions = state === 'OPEN' ? [['close', 'campaign.close'], ['times', 'campaign.times']]
        : state === 'SCHEDULED' ? [['open', 'campaign.open'], ['times', 'campaign.times']]
        : state === 'CLOSED' && it.expiredAt > snapshot.at ? [['times', 'campaign.times']] : [];
    updateList(part(row, 'actions'), actions, ([name]) => name, ([name, key]) => actionButton(name, id, key), (button, [, key]) => {
        updateAttribute(button, 'aria-label', `${it.couponCode}: ${t(key)}`);
        updateText(button, t(key));
    });
}

const moving = ({ couponId, remainingQuantity }) => (history.left.get(couponId) ?? []).some(([, left]) => left !== remainingQuantity);

function campaigns(snapshot) {
    const panel = byId('campaigns');
    if (!present(panel, snapshot.campaigns)) return;
    const all = snapshot.campaigns;
    // Campaigns with recent issues come first, and stay visible when they have ended.
    const moved = new Set(all.filter(moving).map(({ couponId }) => couponId));
    const order = (it) => (it.state in LIVE ? 0 : 4) + (moved.has(it.couponId) ? 0 : 1) + (LIVE[it.state] ?? 0);
    const sorted = [...all].sort((a, b) => order(a) - order(b) || a.opensAt - b.opensAt || a.couponId - b.couponId);
    const shown = sorted.filter((it) => it.state in LIVE || moved.has(it.couponId));
    const rest = sorted.filter((it) => !shown.includes(it));
    const [list, folded] = panel.querySelectorAll('.campaigns');
    const update = (row, it) => {
        // Of many campaigns, those without recent issues are compact.
        row.classList.toggle('calm', shown.length > 3 && !moved.has(it.couponId));
        campaign(row, it, snapshot);
    };
    updateList(list, shown, ({ couponId }) => couponId, campaignRow, update);
    panel.querySelector('.nothing').hidden = shown.length > 0;
    const details = panel.querySelector('details');
    // There may be hundreds: rows of a folded list are not created.
    updateList(folded, details.open ? rest : [], ({ couponId }) => couponId, campaignRow, update);
    details.hidden = rest.length === 0;
    updateText(details.querySelector('summary'), t('campaigns.ended', { n: rest.length }));
}

// --- stock ------------------------------------------------------------------------------------------

function productRow(it) {
    return h('tr', {},
        h('th', { scope: 'row' },
            h('a', { class: 'product', href: `#product-${it.productId}`, 'data-part': 'name' }), ' ',
            h('span', { class: 'sub', 'data-part': 'price' }),
            h('span', { class: 'stack', 'data-part': 'stack', 'aria-hidden': 'true' },
                h('i', { class: 'sold' }), h('i', { class: 'held' }), h('i', { class: 'withheld' }), h('i', { class: 'quarantined' }), h('i', { class: 'on-sale' }))),
        h('td', { class: 'number', 'data-part': 'onSale' }),
        h('td', { class: 'number', 'data-part': 'held' }),
        h('td', { class: 'number', 'data-part': 'sold' }),
        h('td', { class: 'control' }, h('button', { class: 'action', type: 'button', 'data-needs': 'operator', 'data-action': 'stock', 'data-id': it.productId, 'data-part': 'action' }, icon('plus'), h('span', { 'data-t': 'stock.restock', text: t('stock.restock') }))));
}

function product(row, it) {
    updateAttribute(row, 'data-product', String(it.productId));
    row.classList.toggle('sold-out', it.onSale === 0);
    updateText(part(row, 'name'), it.productName);
    const state = it.saleStatus === 'SCHEDULED' || it.saleStatus === 'ENDED' ? t(`sale.${it.saleStatus}`) : it.onSale === 0 ? t('stock.soldOut') : null;
    updateText(part(row, 'price'), [won(it.price), state, it.limitPerUser === null ? null : t('limit.own', { n: it.limitPerUser }), it.withheld > 0 ? `${t('stock.withheld')} ${number(it.withheld)}` : null, it.quarantined > 0 ? `${t('stock.quarantined')} ${number(it.quarantined)}` : null].filter(Boolean).join(' · '));
    updateText(part(row, 'onSale'), number(it.onSale));
    updateText(part(row, 'held'), number(it.held));
    updateText(part(row, 'sold'), number(it.sold));
    const stack = part(row, 'stack');
    const all = it.onSale + it.held + it.sold + it.withheld + it.quarantined || 1;
    [it.sold, it.held, it.withheld, it.quarantined, it.onSale].forEach((units, place) => {
        stack.children[place].hidden = units === 0;
        stack.children[place].style.setProperty('flex-grow', units / all);
    });
    updateAttribute(part(row, 'action'), 'aria-label', t('stock.restockOf', { name: it.productName }));
}

function stock(snapshot) {
    const panel = byId('stock');
    if (!present(panel, snapshot.products)) return;
    updateList(panel.querySelector('tbody'), snapshot.products, ({ productId }) => productId, productRow, product);
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
    updateAttribute(row, 'data-product', String(it.productId));
    const moved = it.previousPosition === null ? null : it.previousPosition - it.rankPosition;
    updateAttribute(row, 'data-move', moved === null ? 'new' : moved > 0 ? 'up' : moved < 0 ? 'down' : 'same');
    updateText(part(row, 'place'), number(it.rankPosition));
    updateText(part(row, 'arrow'), moved === null ? t('move.new.short') : moved > 0 ? `▲${moved}` : moved < 0 ? `▼${-moved}` : '·');
    updateText(part(row, 'move'), moved === null ? t('move.new') : moved > 0 ? t('move.up', { n: moved }) : moved < 0 ? t('move.down', { n: -moved }) : t('move.same'));
    updateText(part(row, 'name'), it.productName);
    updateText(part(row, 'units'), number(it.salesCount));
    updateText(part(row, 'won'), wonShort(it.totalSalesPrice));
    updateAttribute(part(row, 'won'), 'title', won(it.totalSalesPrice));
}

function rankings(snapshot) {
    const panel = byId('rankings');
    if (!present(panel, snapshot.rankings)) return;
    const rows = snapshot.rankings[scope] ?? [];
    updateList(panel.querySelector('tbody'), rows, ({ productId }) => productId, rankedRow, ranked);
    updateText(panel.querySelector('caption'), t('rankings.caption', { scope: t(`scope.${scope}`) }));
    panel.querySelector('table').hidden = rows.length === 0;
    panel.querySelector('.nothing').hidden = rows.length > 0;
}

/// Creates the folded rows when the list is unfolded.
export function bindFolds(redraw) {
    byId('campaigns').querySelector('details').addEventListener('toggle', redraw);
}

/// Tabs by the ARIA practices: arrow keys move, one tab is in the tab order.
export function bindTabs(redraw) {
    const tabs = [...byId('rankings').querySelectorAll('[role="tab"]')];
    const choose = (tab) => {
        scope = tab.dataset.scope;
        for (const each of tabs) {
            updateAttribute(each, 'aria-selected', String(each === tab));
            each.tabIndex = each === tab ? 0 : -1;
        }
        updateAttribute(byId('ranking'), 'aria-labelledby', tab.id);
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

/// Whether a part of the snapshot is present. A panel without it is marked as absent, and keeps its last values.
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
