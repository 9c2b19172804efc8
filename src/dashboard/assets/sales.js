// The plan of sales on a time axis: windows of products, by their limit group, and coupon campaigns.

import { nameWhileOpen } from './address.js';
import { read } from './api.js';
import { errorText, keepLoading, openSheet } from './dialogs.js';
import { h, icon, part, updateAttribute, updateList, updateText } from './dom.js';
import { conditionsText, discountText } from './forms.js';
import { date, fromIso, localIso, number, span, t } from './i18n.js';
import { openPlanForm } from './plan.js';
import { limitText, productLink } from './products.js';

const INTERVAL_MS = 5_000;
const DAY_MS = 24 * 60 * 60 * 1000;
/// The ranges: days shown, days before today, and the hours from one tick to the next.
const RANGES = { day: { days: 1, before: 0, tick: 3 }, week: { days: 7, before: 1, tick: 24 }, month: { days: 30, before: 3, tick: 120 } };
/// Products of a row whose names are shown.
const SHOWN_SIZES = 12;

let range = 'week';

// --- days of the shop ---------------------------------------------------------------------------------

const dayOf = (at) => localIso(at).slice(0, 10);
const plusDays = (day, days) => new Date(Date.parse(`${day}T00:00:00Z`) + days * DAY_MS).toISOString().slice(0, 10);
const midnight = (day) => fromIso(`${day}T00:00:00`);

// --- rows ---------------------------------------------------------------------------------------------

const RANKS = ['ON_SALE', 'SCHEDULED', 'SOLD_OUT', 'ENDED'];

const bounds = ({ opensAt, closesAt }) => ({ from: opensAt === null ? null : fromIso(opensAt), until: closesAt === null ? null : fromIso(closesAt) });

/// The rows of products: one for each product, and one for the products of a group that have the same window.
function productRows(products) {
    const groups = new Map();
    for (const it of products) {
        const key = it.limitGroup === null ? `product ${it.productId}` : `group ${it.limitGroup} ${it.opensAt} ${it.closesAt}`;
        if (!groups.has(key)) groups.set(key, []);
        groups.get(key).push(it);
    }
    return [...groups].map(([key, items]) => {
        const [first] = items;
        const sum = (field) => items.reduce((all, it) => all + it[field], 0);
        const [sold, stocked] = [sum('soldQuantity') + sum('heldQuantity'), sum('stockedQuantity')];
        items.sort((a, b) => a.productId - b.productId);
        return {
            key, ...bounds(first), items: first.limitGroup === null ? [] : items,
            product: first.limitGroup === null ? first.productId : null,
            title: first.limitGroup ?? first.productName,
            state: RANKS.find((state) => items.some((it) => it.saleStatus === state)), states: 'sale',
            terms: [first.limitGroup === null ? null : t('sales.products', { n: items.length }), limitText(first)].filter(Boolean).join(' · '),
            count: stocked === 0 ? t('sales.empty') : t('sales.units', { n: number(sold), total: number(stocked) }),
            share: stocked > 0 ? sold / stocked : 0,
        };
    });
}

function couponRows(campaigns, now) {
    return campaigns.map((it) => {
        const { from, until } = bounds(it);
        return {
            key: `coupon ${it.couponId}`, from, until, items: [], product: null,
            title: it.couponCode,
            state: now < from ? 'SCHEDULED' : now >= until ? 'ENDED' : it.remainingQuantity === 0 ? 'SOLD_OUT' : 'ON_SALE', states: 'coupon',
            terms: [discountText(it), conditionsText({ ...it, productCount: it.productIds?.length ?? 0, categories: it.categories ?? [] })].filter(Boolean).join(' · '),
            count: t('sales.coupons.count', { n: number(it.issuedQuantity), total: number(it.totalQuantity) }),
            share: it.issuedQuantity / it.totalQuantity,
        };
    });
}

// The rows with a beginning first, in its order.
const byTime = (a, b) => (a.from ?? Infinity) - (b.from ?? Infinity) || (a.until ?? Infinity) - (b.until ?? Infinity) || a.title.localeCompare(b.title);

// --- drawing ------------------------------------------------------------------------------------------

function makeRow(row) {
    const title = row.product === null ? h('b', {}) : productLink(row.product, '');
    title.dataset.part = 'title';
    return h('li', { class: 'sale-row' },
        h('div', { class: 'sale-label' },
            h('p', {}, title, ' ', h('span', { class: 'state', 'data-part': 'state' })),
            h('p', { class: 'sub', 'data-part': 'terms' }),
            h('p', { class: 'sub', 'data-part': 'when' }),
            h('p', { class: 'sub', 'data-part': 'count' }),
            h('ul', { class: 'sizes', 'data-part': 'sizes' })),
        h('div', { class: 'track', 'aria-hidden': 'true' }, h('div', { class: 'span', 'data-part': 'bar' }, h('i', { 'data-part': 'fill' }))));
}

function makeSize({ productId: id }) {
    const link = productLink(id, '');
    link.append(h('span', { 'data-part': 'name' }), ' ', h('span', { class: 'sub', 'data-part': 'left' }));
    return h('li', {}, link);
}

/// The part of the names that all have, so that sizes of one shoe are told apart by the rest.
function commonStart(names) {
    if (names.length < 2) return 0;
    let length = 0;
    while (names.every((name) => length < name.length && name[length] === names[0][length])) length += 1;
    // Only whole words.
    return names[0].slice(0, length).lastIndexOf(' ') + 1;
}

function whenText({ from, until }, now) {
    const [opens, closes] = span(from, until, now);
    if (opens === null && closes === null) return t('window.always');
    if (closes === null) return t('window.from', { from: opens });
    if (opens === null) return t('window.until', { until: closes });
    return t('window.both', { from: opens, until: closes });
}

function drawRow(element, row, { begin, end, now }) {
    updateAttribute(element, 'data-state', row.state);
    updateAttribute(element, 'data-row', row.key);
    updateText(part(element, 'title'), row.title);
    updateText(part(element, 'state'), t(`${row.states}.${row.state}`));
    updateText(part(element, 'terms'), row.terms);
    updateText(part(element, 'when'), whenText(row, now));
    updateText(part(element, 'count'), row.count);
    const shown = row.items.slice(0, SHOWN_SIZES);
    const common = commonStart(row.items.map((it) => it.productName));
    const more = row.items.length - shown.length;
    updateList(part(element, 'sizes'), more > 0 ? [...shown, { productId: 'more', more }] : shown, ({ productId }) => productId,
        (it) => (it.more ? h('li', { class: 'sub' }) : makeSize(it)), (size, it) => {
            if (it.more) {
                updateText(size, t('sales.more', { n: it.more }));
                return;
            }
            updateText(part(size, 'name'), it.productName.slice(common));
            updateText(part(size, 'left'), it.stockQuantity === 0 ? t('stock.soldOut') : t('sales.left', { n: number(it.stockQuantity) }));
            updateAttribute(size.firstChild, 'aria-label', `${it.productName}: ${it.stockQuantity === 0 ? t('stock.soldOut') : t('sales.left', { n: number(it.stockQuantity) })}`);
            size.classList.toggle('gone', it.stockQuantity === 0);
        });
    const place = (at) => Math.min(1, Math.max(0, (at - begin) / (end - begin)));
    const bar = part(element, 'bar');
    const [left, right] = [row.from === null ? 0 : place(row.from), row.until === null ? 1 : place(row.until)];
    bar.style.setProperty('--begin', left);
    bar.style.setProperty('--finish', right);
    bar.hidden = right <= left;
    bar.classList.toggle('from-before', row.from === null || row.from < begin);
    bar.classList.toggle('goes-on', row.until === null || row.until > end);
    part(element, 'fill').style.setProperty('--share', row.share);
}

/// The ticks of the axis: `{ at, text }`, from the shop's midnight on.
function ticksOf(day) {
    const { days, tick } = RANGES[range];
    const ticks = [];
    if (tick >= 24) {
        for (let offset = 0; offset < days; offset += tick / 24) {
            const at = midnight(plusDays(day, offset));
            ticks.push({ at, text: date(at) });
        }
        return ticks;
    }
    for (let hour = 0; hour < 24; hour += tick) {
        const two = String(hour).padStart(2, '0');
        ticks.push({ at: fromIso(`${day}T${two}:00:00`), text: `${two}:00` });
    }
    return ticks;
}

function drawAxis(axis, lines, day, { begin, end, now }) {
    const place = (at) => (at - begin) / (end - begin);
    const ticks = ticksOf(day);
    const today = dayOf(now);
    updateList(axis, ticks, ({ at }) => at, () => h('span', { class: 'tick' }), (tick, it) => {
        updateText(tick, it.text);
        tick.style.setProperty('--at', place(it.at));
        tick.classList.toggle('today', dayOf(it.at) === today);
    });
    updateList(lines, ticks, ({ at }) => at, () => h('i', {}), (line, it) => line.style.setProperty('--at', place(it.at)));
}

/// Opens the plan of sales. `now()`: the server's clock.
export function openSales(now) {
    const dialog = openSheet(t('sales'), (body, sheet) => {
        let day = plusDays(dayOf(now()), -RANGES[range].before);
        let plan = null;
        let requests = 0;
        const button = (key, act, text) => h('button', { class: 'action', type: 'button', onclick: act, ...(text ? { 'aria-label': t(key), text } : { text: t(key) }) });
        const choices = Object.keys(RANGES).map((name) => h('button', { type: 'button', 'aria-pressed': String(name === range), 'data-range': name, text: t(`sales.range.${name}`), onclick: () => choose(name) }));
        const title = h('h3', { class: 'range-title' });
        const missing = h('p', { class: 'sub' });
        const failure = h('p', { class: 'error' });
        const [axis, lines, nowMark] = [h('div', { class: 'axis', 'aria-hidden': 'true' }), h('div', { class: 'lines', 'aria-hidden': 'true' }), h('div', { class: 'now', 'aria-hidden': 'true' }, h('span', {}))];
        const sections = [['sales.of-products', h('ul', { class: 'sale-rows' })], ['sales.of-coupons', h('ul', { class: 'sale-rows' })]].map(([key, list]) => {
            const nothing = h('p', { class: 'nothing', text: t(`${key}.none`) });
            return { list, nothing, element: h('section', {}, h('h4', { text: t(key) }), list, nothing) };
        });
        const chart = h('div', { class: 'sale-chart', 'data-part': 'chart' }, axis, lines, ...sections.map(({ element }) => element), nowMark);
        body.append(
            h('div', { class: 'sale-tools' },
                h('div', { class: 'tabs', role: 'group', 'aria-label': t('sales.range') }, ...choices),
                h('div', { class: 'steps' }, button('sales.earlier', () => move(-1), '‹'), button('sales.today', () => choose(range)), button('sales.later', () => move(1), '›')),
                title,
                h('button', { class: 'primary', type: 'button', 'data-needs': 'operator', 'data-part': 'plan', onclick: () => openPlanForm(now, reload) }, icon('plus'), h('span', { text: t('plan') }))),
            failure, missing, chart);

        const axisRange = () => ({ begin: midnight(day), end: midnight(plusDays(day, RANGES[range].days)), now: now() });

        function drawNow() {
            const at = axisRange();
            const place = (at.now - at.begin) / (at.end - at.begin);
            nowMark.hidden = place < 0 || place > 1;
            nowMark.style.setProperty('--at', place);
            updateText(nowMark.firstChild, t('sales.now', { at: localIso(at.now).slice(11, 16) }));
        }

        function draw() {
            const at = axisRange();
            const last = midnight(plusDays(day, RANGES[range].days - 1));
            updateText(title, RANGES[range].days === 1 ? date(at.begin, true) : t('sales.span', { from: date(at.begin, true), until: date(last, true) }));
            drawAxis(axis, lines, day, at);
            drawNow();
            if (plan === null) return;
            [productRows(plan.products), couponRows(plan.campaigns, at.now)].forEach((rows, place) => {
                const { list, nothing } = sections[place];
                updateList(list, rows.sort(byTime), ({ key }) => key, makeRow, (element, row) => drawRow(element, row, at));
                nothing.hidden = rows.length > 0;
            });
            updateText(missing, plan.complete ? '' : t('sales.incomplete'));
        }

        async function load() {
            const request = (requests += 1);
            const { begin, end } = axisRange();
            try {
                const answer = await read(`/sales?from=${localIso(begin)}&until=${localIso(end)}`);
                if (request !== requests) return;
                plan = answer;
                updateText(failure, '');
                draw();
                chart.removeAttribute('aria-busy');
            } catch (error) {
                if (request === requests) updateText(failure, errorText(error));
            }
        }

        function show() {
            plan = null;
            chart.setAttribute('aria-busy', 'true');
            draw();
            load();
        }

        function choose(name) {
            range = name;
            day = plusDays(dayOf(now()), -RANGES[range].before);
            for (const choice of choices) updateAttribute(choice, 'aria-pressed', String(choice.dataset.range === name));
            show();
        }

        function move(by) {
            day = plusDays(day, by * RANGES[range].days);
            show();
        }

        chart.setAttribute('aria-busy', 'true');
        draw();
        const clock = setInterval(drawNow, 1_000);
        sheet.addEventListener('close', () => clearInterval(clock));
        const reload = keepLoading(sheet, INTERVAL_MS, load);
        choices.find((choice) => choice.dataset.range === range).focus();
    }, { size: 'full' });
    nameWhileOpen('#sales', dialog);
}
