// The form that plans a sale in one go: terms of products, new products in sizes, and a coupon.

import { catalog, read, write } from './api.js';
import { announce, clearErrors, errorField, errorText, field, openSheet, paginate, readField, showError } from './dialogs.js';
import { h, icon, updateText } from './dom.js';
import { categoriesField, categoryField, checkCoupon, checkTerms, couponBody, discountFields, MAX_UNITS, MAX_WON, readNumbers, sumFields, termFields, zoneHint } from './forms.js';
import { fromIso, localIso, number, t, won } from './i18n.js';
import { limitText, windowText } from './products.js';

const MAX_PRODUCTS = 100;
const WEEK_MS = 7 * 24 * 60 * 60 * 1000;

let serial = 0;

/// The sizes of a text like `250, 260: 40`: `[size, units]` pairs, with `units` where a size has no number; null if it has another form.
function readSizes(text, units) {
    const sizes = new Map();
    for (const item of text.split(',').map((part) => part.trim()).filter(Boolean)) {
        const match = /^(.{1,60}?)(?:\s*:\s*(\d{1,10}))?$/.exec(item);
        if (!match || sizes.has(match[1])) return null;
        const count = match[2] === undefined ? units : Number(match[2]);
        if (count > MAX_UNITS) return null;
        sizes.set(match[1], count);
    }
    return [...sizes];
}

/// The fields of the coupon, under names that differ from those of the products.
const couponFields = (now) => [
    { name: 'couponCode', label: t('form.code'), maxLength: 64, half: true },
    { name: 'totalQuantity', label: t('form.total'), kind: 'number', min: 1, max: MAX_UNITS, half: true },
    ...discountFields(),
    ...sumFields(),
    { name: 'scope', label: t('plan.scope'), kind: 'choice', half: true, options: ['sale', 'categories', 'all'].map((scope) => [scope, t(`plan.scope.${scope}`)]) },
    categoriesField(),
    { name: 'couponOpensAt', label: t('form.opensAt'), kind: 'time', required: false, half: true, hint: t('plan.opensAt.hint') },
    { name: 'couponClosesAt', label: t('form.closesAt'), kind: 'time', required: false, half: true, hint: t('plan.closesAt.hint') },
    { name: 'expiredAt', label: t('form.expiredAt'), kind: 'time', hint: zoneHint(), value: `${localIso(now + WEEK_MS).slice(0, 10)}T23:59:59` },
];

const newFields = () => [
    { name: 'productName', label: t('form.productName'), maxLength: 180 },
    { name: 'price', label: t('form.price'), kind: 'number', min: 0, max: MAX_WON, half: true },
    { ...categoryField('SHOES'), hint: undefined, half: true },
    { name: 'sizes', label: t('plan.sizes'), maxLength: 1_000, required: false, half: true, hint: t('plan.sizes.hint'), placeholder: '250, 260, 270: 40' },
    { name: 'units', label: t('plan.units'), kind: 'number', min: 0, max: MAX_UNITS, half: true, hint: t('plan.units.hint') },
];

/// The list of chosen products, with the ways to add to it.
function picker(id, changed) {
    const chosen = new Map();
    const list = h('ul', { class: 'chosen' });
    const nothing = h('p', { class: 'sub', text: t('plan.chosen.none') });
    const input = h('input', { id: `${id}-numbers`, type: 'text', inputmode: 'text', maxlength: 200, autocomplete: 'off', placeholder: '12, 14-18', 'aria-describedby': `${id}-numbers-error` });
    const failure = h('p', { class: 'error', id: `${id}-numbers-error` });
    const boxes = new Map();

    function draw() {
        list.replaceChildren(...[...chosen].map(([product, name]) => h('li', {}, h('span', { text: name }), h('span', { class: 'sub', text: ` ${product}` }),
            h('button', { class: 'quiet', type: 'button', 'aria-label': t('plan.remove', { name }), onclick: () => { remove(product); input.focus(); } }, icon('close')))));
        nothing.hidden = chosen.size > 0;
        changed();
    }
    function remove(product) {
        chosen.delete(product);
        const box = boxes.get(product);
        if (box) box.checked = false;
        draw();
    }
    async function add() {
        updateText(failure, '');
        const numbers = readNumbers(input.value);
        if (!numbers || numbers.length === 0) {
            updateText(failure, t('form.wrong.productIds'));
            return;
        }
        for (const product of numbers) {
            try {
                const { productName } = await read(`/products/${product}`);
                chosen.set(product, productName);
                const box = boxes.get(product);
                if (box) box.checked = true;
            } catch (error) {
                updateText(failure, `${product}: ${errorText(error)}`);
                draw();
                return;
            }
        }
        input.value = '';
        draw();
    }
    input.addEventListener('keydown', (event) => {
        if (event.key !== 'Enter') return;
        // It adds to the list, and does not submit the form.
        event.preventDefault();
        add();
    });
    const catalogue = h('details', { class: 'folded' }, h('summary', { text: t('plan.catalogue') }));
    catalogue.addEventListener('toggle', () => {
        if (!catalogue.open || catalogue.children.length > 1) return;
        paginate(catalogue, (page) => catalog(page, 10), (products, box) => {
            boxes.clear();
            if (products.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('stock.none') }));
                return;
            }
            box.replaceChildren(h('ul', { class: 'catalogue' }, ...products.map((it) => {
                const check = h('input', { type: 'checkbox', checked: chosen.has(it.productId), onchange: ({ target }) => {
                    if (target.checked) chosen.set(it.productId, it.productName);
                    else chosen.delete(it.productId);
                    draw();
                } });
                boxes.set(it.productId, check);
                return h('li', {}, h('label', {}, check, h('span', { text: it.productName }),
                    h('span', { class: 'sub', text: [String(it.productId), won(it.price), t('sales.left', { n: number(it.stockQuantity) }), limitText(it)].filter(Boolean).join(' · ') })));
            })));
        }, { last: true });
    });
    draw();
    const element = h('div', { class: 'field' },
        list, nothing,
        h('div', { class: 'adding' }, h('label', { for: input.id, text: t('plan.numbers') }), input, h('button', { class: 'action', type: 'button', text: t('plan.add'), onclick: add })),
        failure, catalogue);
    return { element, chosen, input, fail: (text) => { updateText(failure, text); input.focus(); } };
}

/// A part of the form that a checkbox turns on. Its fields are required only then.
function optionalPart(title, name, content, changed) {
    const fields = h('fieldset', { class: 'fields', disabled: true, hidden: true }, h('legend', { class: 'unseen', text: title }), ...content);
    const check = h('input', { type: 'checkbox', name, onchange: () => {
        fields.disabled = !check.checked;
        fields.hidden = !check.checked;
        changed();
        if (check.checked) fields.querySelector('input, select').focus();
    } });
    return { element: h('div', { class: 'plan-part' }, h('h3', {}, h('label', { class: 'choice' }, check, h('span', { text: title }))), fields), on: () => check.checked };
}

/// Opens the form. `now()`: the server's clock; calls `done` after changes.
export function openPlanForm(now, done) {
    openSheet(t('plan.title'), (body, dialog) => {
        const id = `plan-${(serial += 1)}`;
        const [terms, fresh, coupon] = [termFields(), newFields(), couponFields(now())];
        const shown = (specs) => specs.map((spec) => field(spec, `${id}-${spec.name}`));
        const valuesOf = (specs) => Object.fromEntries(specs.map((spec) => [spec.name, readField(form, spec)]));
        const summary = h('p', { class: 'plan-summary', 'data-part': 'summary' });
        const changed = () => form && updateText(summary, describe());
        let form = null;
        const products = picker(id, changed);
        const making = optionalPart(t('plan.new'), 'making', shown(fresh), changed);
        const giving = optionalPart(t('plan.coupon'), 'giving', shown(coupon), changed);
        const failure = h('p', { class: 'error', tabindex: '-1' });
        const steps = h('ol', { class: 'plan-steps', 'aria-label': t('plan.steps') });
        const button = h('button', { class: 'primary', type: 'submit', text: t('plan.submit') });
        // What earlier attempts have done: a further one does not create it again.
        const created = new Map();

        form = h('form', { class: 'plan' },
            h('p', { class: 'lead', text: t('plan.lead') }),
            h('section', { class: 'plan-part' }, h('h3', { text: t('plan.when') }), h('div', { class: 'fields' }, ...shown(terms))),
            h('section', { class: 'plan-part' }, h('h3', { text: t('plan.products') }), products.element),
            making.element, giving.element,
            h('div', { class: 'plan-end' }, summary, failure, steps,
                h('div', { class: 'buttons' }, h('button', { class: 'action', type: 'button', text: t('cancel'), onclick: () => dialog.close() }), button)));

        const sizesOf = (values) => (values.sizes === null ? [[null, values.units ?? 0]] : readSizes(values.sizes, values.units ?? 0));

        function couponValues(values, sale) {
            const { couponOpensAt, couponClosesAt, scope, ...rest } = values;
            // A coupon that has no window of its own is given out in that of the sale.
            const opensAt = couponOpensAt ?? sale.opensAt;
            const closesAt = couponClosesAt ?? (sale.closesAt !== null && sale.closesAt <= values.expiredAt ? sale.closesAt : null);
            return { ...rest, opensAt, closesAt, productIds: scope === 'sale' ? [] : null, categories: scope === 'categories' ? (values.categories ?? '') : null };
        }

        function describe() {
            const sale = valuesOf(terms);
            const sizes = making.on() ? sizesOf(valuesOf(fresh)) ?? [] : [];
            const count = products.chosen.size + sizes.length;
            const window = windowText({ opensAt: sale.opensAt, closesAt: sale.closesAt }) || t('window.always');
            const parts = [t('plan.summary', { n: count, window }), limitText(sale)];
            if (giving.on()) {
                const { couponCode, totalQuantity, discountAmount, discountType, minOrderPrice } = valuesOf(coupon);
                parts.push([
                    t('plan.summary.coupon', { code: couponCode ?? '' }).trim(),
                    totalQuantity === null ? null : t('plan.summary.coupons', { n: number(totalQuantity) }),
                    discountAmount === null ? null : discountType === 'FIXED' ? t('discount.FIXED', { amount: won(discountAmount) }) : t('discount.PERCENTAGE', { n: number(discountAmount) }),
                    minOrderPrice === null ? null : t('conditions.min', { amount: won(minOrderPrice) }),
                ].filter(Boolean).join(', '));
            }
            return parts.filter(Boolean).join(' · ');
        }

        const fail = (text, name) => {
            if (showError(form, name, text)) return;
            updateText(failure, text);
            failure.focus();
        };

        // `{ field, text }`, or null.
        function check(sale, sizes, gift) {
            const wrong = checkTerms(sale);
            if (wrong) return wrong;
            if (sizes === null) return { field: 'sizes', text: t('plan.wrong.sizes') };
            const count = products.chosen.size + sizes.length;
            if (count > MAX_PRODUCTS) return { text: t('plan.wrong.many', { n: MAX_PRODUCTS }) };
            if (count === 0 && (gift === null || gift.productIds !== null)) return { products: true, text: t('plan.wrong.none') };
            if (count > 0 && gift === null && Object.values(sale).every((value) => value === null) && sizes.length === 0) return { field: 'opensAt', text: t('plan.wrong.terms') };
            if (gift === null) return null;
            const bad = checkCoupon({ ...gift, productIds: null }, localIso(now()));
            const own = { opensAt: 'couponOpensAt', closesAt: 'couponClosesAt' };
            return bad && { ...bad, field: own[bad.field] ?? bad.field };
        }

        /// The steps of the plan, in order: `{ key, text, field?, run() }`.
        function stepsOf(sale, sizes, gift) {
            const list = [...products.chosen].map(([product, name]) => ({ key: `product ${product}`, text: t('plan.step.change', { name }), product, run: () => write('PATCH', `/products/${product}`, sale) }));
            const values = valuesOf(fresh);
            for (const [size, units] of sizes) {
                const name = size === null ? values.productName : `${values.productName} ${size}`;
                const key = `new ${name}`;
                const description = { productName: name, price: values.price, category: values.category };
                list.push({
                    key, text: t('plan.step.create', { name, n: number(units) }),
                    // Created by an earlier attempt, with the terms of that one.
                    run: () => (created.has(key)
                        ? write('PATCH', `/products/${created.get(key)}`, { ...description, ...sale })
                        : write('POST', '/products', { ...description, stockQuantity: units, ...sale })),
                    done: (answer) => created.set(key, answer.productId), createdId: () => created.get(key),
                });
            }
            if (gift !== null) {
                list.push({
                    key: 'coupon', text: t('plan.step.coupon', { code: gift.couponCode }), coupon: true,
                    run: () => {
                        const ids = list.map(({ product, createdId }) => product ?? createdId?.()).filter(Boolean);
                        return write('POST', '/coupons', couponBody({ ...gift, productIds: gift.productIds === null ? null : ids }));
                    },
                });
            }
            return list;
        }

        form.addEventListener('submit', async (event) => {
            event.preventDefault();
            if (button.disabled) return;
            updateText(failure, '');
            clearErrors(form);
            steps.replaceChildren();
            const sale = valuesOf(terms);
            const sizes = making.on() ? sizesOf(valuesOf(fresh)) : [];
            const gift = giving.on() ? couponValues(valuesOf(coupon), sale) : null;
            const wrong = check(sale, sizes, gift);
            if (wrong) {
                if (wrong.products) products.fail(wrong.text);
                else fail(wrong.text, wrong.field);
                return;
            }
            button.disabled = true;
            const all = stepsOf(sale, sizes, gift).map((step) => ({ ...step, row: h('li', { 'data-step': 'waiting' }, h('span', { class: 'mark' }), h('span', { text: step.text }), h('span', { class: 'sub' })) }));
            steps.replaceChildren(...all.map(({ row }) => row));
            let failed = null;
            for (const step of all) {
                try {
                    const answer = await step.run();
                    step.done?.(answer);
                    step.row.dataset.step = 'done';
                    step.row.firstChild.replaceChildren(icon('ok'));
                } catch (error) {
                    step.row.dataset.step = 'failed';
                    step.row.firstChild.replaceChildren(icon('bad'));
                    updateText(step.row.lastChild, errorText(error));
                    failed = { step, error };
                    break;
                }
            }
            button.disabled = false;
            done();
            if (failed === null) {
                dialog.close();
                announce(t('plan.done', { n: all.length }));
                return;
            }
            const name = errorField(failed.error);
            fail(t('plan.failed', { step: failed.step.text, why: errorText(failed.error) }), failed.step.coupon && name === 'closesAt' ? 'couponClosesAt' : name);
        });
        const { scope, categories, expiredAt } = form.elements;
        const expiry = expiredAt.value;
        const showScope = () => {
            const named = scope.value === 'categories';
            categories.closest('.field').hidden = !named;
            scope.closest('.field').classList.toggle('half', named);
        };
        form.addEventListener('input', changed);
        form.addEventListener('change', ({ target }) => {
            const sale = valuesOf(terms);
            const end = sale.closesAt ?? sale.opensAt;
            // The coupons outlive the sale by a week, unless another time was entered.
            if (target !== expiredAt && end !== null && [expiry, follows].includes(expiredAt.value)) {
                follows = `${localIso(fromIso(end) + WEEK_MS).slice(0, 10)}T23:59:59`;
                expiredAt.value = follows;
            }
            showScope();
            changed();
        });
        let follows = expiry;
        showScope();
        body.append(form);
        changed();
        form.elements.opensAt.focus();
    });
}
