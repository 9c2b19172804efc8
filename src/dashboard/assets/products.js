// Products: their list, the forms to create and change one, and the page of one.

import { catalog, read, write } from './api.js';
import { nameWhileOpen } from './address.js';
import { announce, errorText, keepLoading, openForm, openSheet, paginate } from './dialogs.js';
import { h, updateAttribute, updateText } from './dom.js';
import { categoryField, checkTerms, MAX_UNITS, MAX_WON, TERMS, termFields } from './forms.js';
import { number, readIso, t, won } from './i18n.js';
import { openTimelineSearch } from './timeline.js';

const PAGE_INTERVAL_MS = 2_000;

const folded = (section, fields) => fields.map((spec) => ({ ...spec, folded: section }));

export function newProduct() {
    openForm({
        title: t('stock.new'), submit: t('create'),
        fields: [
            { name: 'productName', label: t('form.productName'), maxLength: 200 },
            { name: 'price', label: t('form.price'), kind: 'number', min: 0, max: MAX_WON, half: true },
            { name: 'stockQuantity', label: t('form.stock'), kind: 'number', min: 0, max: MAX_UNITS, half: true },
            categoryField(),
            ...folded(t('form.terms'), termFields()),
        ],
        check: checkTerms,
        async send(values) {
            const created = await write('POST', '/products', Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null)));
            return t('action.product.created', { name: created.productName, id: created.productId });
        },
    });
}

/// A link to the page of a product. `bindProductLinks` opens it in this page.
export const productLink = (id, text) => h('a', { href: `#product-${id}`, text });

/// Opens the page of a product at a click on a link to it; a new tab, where the browser is asked for one.
export function bindProductLinks() {
    document.addEventListener('click', (event) => {
        const link = event.target.closest?.('a[href^="#product-"]');
        if (!link || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        openProduct(Number(link.hash.slice('#product-'.length)));
    });
}

export function allProducts() {
    openSheet(t('stock.all'), (body) => {
        paginate(body, (page) => catalog(page, 20), (products, box, reload) => {
            if (products.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('stock.none') }));
                return;
            }
            const head = [['stock.product'], ['stock.category'], ['stock.price', 'number'], ['stock.onSale', 'number']];
            box.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('stock.all') },
                h('table', { class: 'records' },
                    h('caption', { class: 'unseen', text: t('stock.all') }),
                    h('thead', {}, h('tr', {}, ...head.map(([key, kind]) => h('th', { scope: 'col', class: kind, text: t(key) })), h('th', { scope: 'col' }, h('span', { class: 'unseen', text: t('stock.restock') })))),
                    h('tbody', {}, ...products.map((it) => h('tr', {},
                        h('th', { scope: 'row' }, productLink(it.productId, it.productName), h('span', { class: 'sub', text: ` ${it.productId}` }), h('span', { class: 'sub terms', text: termsText(it) })),
                        h('td', { text: it.category }),
                        h('td', { class: 'number', text: won(it.price) }),
                        h('td', { class: 'number', text: number(it.stockQuantity) }),
                        h('td', { class: 'control' }, h('button', { class: 'action', type: 'button', 'data-needs': 'operator', 'aria-label': t('stock.restockOf', { name: it.productName }), text: t('stock.restock'), onclick: () => editProduct(it, reload) }))))))));
        });
    });
}

/// The limit of a product in words; empty without one.
export function limitText({ limitPerUser, limitGroup }) {
    if (limitPerUser === null) return '';
    return limitGroup === null ? t('limit.own', { n: limitPerUser }) : t('limit.group', { n: limitPerUser, group: limitGroup });
}

/// The window of a sale in words; empty without one.
export function windowText({ opensAt, closesAt }) {
    if (opensAt === null && closesAt === null) return '';
    if (closesAt === null) return t('window.from', { from: readIso(opensAt) });
    if (opensAt === null) return t('window.until', { until: readIso(closesAt) });
    return t('window.both', { from: readIso(opensAt), until: readIso(closesAt) });
}

const termsText = (it) => [windowText(it), limitText(it)].filter(Boolean).join(' · ');

/// Opens the form for a product, as the operators' API shows it; calls `done` after a change.
export function editProduct(product, done = () => {}) {
    const { productId: id, productName: name, price, category, stockQuantity: onSale } = product;
    openForm({
        title: `${t('stock.restock')} · ${name}`, submit: t('save'),
        fields: [
            { name: 'stockDelta', label: t('form.delta'), kind: 'signed', min: -MAX_UNITS, max: MAX_UNITS, required: false, hint: t('form.delta.hint', { n: number(onSale) }) },
            ...folded(t('form.terms'), termFields(product)),
            ...folded(t('form.change'), [
                { name: 'productName', label: t('form.productName'), maxLength: 200, value: name },
                { name: 'price', label: t('form.price'), kind: 'number', min: 0, max: MAX_WON, value: price },
                categoryField(category),
            ]),
        ],
        check: (values) => checkTerms(values) ?? (Object.keys(changed(values)).length === 0 ? t('form.nothing') : null),
        question: ({ stockDelta }) => (stockDelta < 0
            ? { title: t('stock.restock'), text: t('action.product.take.ask', { name, n: number(-stockDelta) }), yes: t('stock.restock') }
            : null),
        async send(values) {
            const now = await write('PATCH', `/products/${id}`, changed(values));
            done();
            return t('action.product.changed', { name: now.productName, n: number(now.stockQuantity) });
        },
    });
    function changed({ stockDelta, ...rest }) {
        // An empty term is removed; the other fields can't be empty.
        const body = Object.fromEntries(Object.entries(rest).filter(([key, value]) => value !== product[key] && (value !== null || TERMS.includes(key))));
        return stockDelta ? { stockDelta, ...body } : body;
    }
}

/// Reads a product, and opens its form.
export async function editProductById(id, done) {
    try {
        editProduct(await read(`/products/${id}`), done);
    } catch (error) {
        announce(errorText(error));
    }
}

// --- the page of a product --------------------------------------------------------------------------

const UNITS = [['on-sale', 'stockQuantity', 'stock.onSale'], ['held', 'heldQuantity', 'stock.held'], ['sold', 'soldQuantity', 'stock.sold'], ['withheld', 'withheldQuantity', 'stock.withheld'], ['quarantined', 'quarantinedQuantity', 'stock.quarantined']];

/// The state of a sale, as a pill. `state` is the API's `saleStatus`.
export const statePill = (state) => h('span', { class: 'state', 'data-state': state, text: t(`sale.${state}`) });

function showUnits(box, it) {
    const shown = UNITS.filter(([kind, field]) => (kind !== 'withheld' && kind !== 'quarantined') || it[field] > 0);
    const stack = h('div', { class: 'stack large', 'aria-hidden': 'true' }, ...shown.map(([kind]) => h('i', { class: kind })).reverse());
    shown.forEach(([, field], place) => {
        const bar = stack.children[shown.length - 1 - place];
        bar.hidden = it[field] === 0;
        bar.style.setProperty('flex-grow', it[field] / (it.stockedQuantity || 1));
    });
    const term = (sign, kind, key, units) => h('div', { 'data-units': kind },
        h('dt', {}, kind === 'stocked' ? null : h('i', { class: `key ${kind}`, 'aria-hidden': 'true' }), h('span', { text: t(key) })),
        h('dd', {}, h('span', { class: 'sign', 'aria-hidden': 'true', text: sign }), h('b', { text: number(units) })));
    box.replaceChildren(stack, h('dl', { class: 'law' },
        ...shown.map(([kind, field, key], place) => term(place === 0 ? '' : '+', kind, key, it[field])),
        term('=', 'stocked', 'product.stocked', it.stockedQuantity)));
}

function showFacts(box, it) {
    const fact = (key, text) => h('div', {}, h('dt', { text: t(key) }), h('dd', { text }));
    box.replaceChildren(
        fact('product.opens', it.opensAt === null ? t('product.opens.always') : readIso(it.opensAt)),
        fact('product.closes', it.closesAt === null ? t('product.closes.never') : readIso(it.closesAt)),
        fact('product.limit', limitText(it) || t('product.limit.none')),
        fact('stock.price', won(it.price)),
        fact('stock.category', it.category),
        fact('product.number', String(it.productId)));
}

function userRow({ userId: id, userName: name, quantity }, limit) {
    const full = limit !== null && quantity >= limit;
    return h('tr', { 'data-user': id, class: full ? 'full' : null },
        h('th', { scope: 'row' }, h('button', { class: 'link', type: 'button', text: name || t('timeline.user.of', { id }), onclick: () => openTimelineSearch({ kind: 'user', id }) }), h('span', { class: 'sub', text: ` ${id}` })),
        h('td', { class: 'number', text: limit === null ? number(quantity) : t('product.users.of', { n: number(quantity), limit: number(limit) }) }),
        h('td', { text: full ? t('product.users.full') : '' }));
}

function usersOf(box, id) {
    const lead = h('p', { class: 'sub', 'data-part': 'at-limit' });
    box.append(lead);
    return paginate(box, async (page) => {
        const answer = await read(`/products/${id}/buyers?page=${page}&size=20`);
        const { limitPerUser: limit, limitGroup: group, usersAtLimit: full, totalElements: total } = answer;
        updateText(lead, [
            limit === null ? t('product.users.free') : group === null ? null : t('product.users.group', { group }),
            limit === null ? null : t('product.users.sum', { n: number(full), total: number(total) }),
            answer.complete ? null : t('product.users.newest'),
        ].filter(Boolean).join(' '));
        return { ...answer, content: answer.content.map((user) => ({ user, limit })) };
    }, (rows, list) => {
        if (rows.length === 0) {
            list.replaceChildren(h('p', { class: 'nothing', text: t('product.users.none') }));
            return;
        }
        const head = [['product.users.user'], ['product.users.units', 'number'], ['product.users.state']];
        list.replaceChildren(h('table', { class: 'records users' },
            h('caption', { class: 'unseen', text: t('product.users') }),
            h('thead', {}, h('tr', {}, ...head.map(([key, kind]) => h('th', { scope: 'col', class: kind, text: t(key) })))),
            h('tbody', {}, ...rows.map(({ user, limit }) => userRow(user, limit)))));
    });
}

/// Opens the page of a product.
export function openProduct(id) {
    const dialog = openSheet(t('product.title', { id }), (body, sheet) => {
        const [state, facts, units, users] = [h('span', { class: 'head' }), h('dl', { class: 'timeline-facts' }), h('div', { 'data-part': 'units' }), h('section', {})];
        const edit = h('button', { class: 'action', type: 'button', 'data-needs': 'operator', text: t('product.edit'), onclick: () => current && editProduct(current, () => { reload(); list.reload(); }) });
        const failure = h('p', { class: 'error' });
        body.append(h('div', { class: 'product-head' }, state, edit), failure, facts, h('h3', { text: t('product.units') }), units, h('h3', { text: t('product.users') }), users);
        const list = usersOf(users, id);
        let current = null;
        let requests = 0;
        async function load() {
            const request = (requests += 1);
            try {
                const it = await read(`/products/${id}`);
                if (request !== requests) return;
                current = it;
                updateText(sheet.querySelector('h2'), it.productName);
                updateText(failure, '');
                if (state.dataset.state !== it.saleStatus) {
                    updateAttribute(state, 'data-state', it.saleStatus);
                    state.replaceChildren(statePill(it.saleStatus));
                }
                showFacts(facts, it);
                showUnits(units, it);
            } catch (error) {
                if (request === requests) updateText(failure, errorText(error));
            }
        }
        const reload = keepLoading(sheet, PAGE_INTERVAL_MS, load);
        edit.focus();
    });
    dialog.classList.add('product-page');
    nameWhileOpen(`#product-${id}`, dialog);
}
