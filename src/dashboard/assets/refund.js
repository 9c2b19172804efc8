// The form that refunds an order by line.

import { read, write } from './api.js';
import { announce, confirm, errorText, openSheet } from './dialogs.js';
import { h, updateText } from './dom.js';
import { number, t, won } from './i18n.js';

let serial = 0;

/// What is left of each line of an order.
const leftOf = (order) => order.orderProducts.map((line) => ({ ...line, left: line.quantity - line.refundedQuantity })).filter(({ left }) => left > 0);

/// Whether a part of the order can be refunded.
export const isRefundable = (order) => order.orderStatus === 'PAID' && leftOf(order).length > 0;

/// One line: a checkbox, and the number of units.
function lineRow(line, id, changed) {
    const { productId, price, left } = line;
    const units = h('input', { type: 'number', inputmode: 'numeric', min: 1, max: left, step: 1, value: left, required: true, disabled: true, 'aria-label': t('refund.units', { id: productId }), oninput: changed });
    const check = h('input', { type: 'checkbox', id, onchange: () => {
        units.disabled = !check.checked;
        changed();
    } });
    const name = h('b', { text: t('product.title', { id: productId }) });
    // The names are not part of the order.
    read(`/products/${productId}`).then(({ productName }) => updateText(name, productName), () => {});
    return {
        row: h('li', {}, h('label', { for: id }, check, h('span', {}, name, h('span', { class: 'sub', text: ` ${productId} · ${won(price)}` }))), units, h('span', { class: 'sub', text: t('refund.of', { n: number(left) }) })),
        chosen: () => (check.checked ? { productId, quantity: Number(units.value), value: price * Number(units.value) } : null),
        check,
    };
}

/// Opens the form for an order as the operators' API shows it; calls `done` after a refund.
export function openRefund(order, done) {
    const { orderId: id, finalPrice, totalPrice, refundedPrice } = order;
    openSheet(t('refund.title', { id }), (body, dialog) => {
        const prefix = `refund-${(serial += 1)}`;
        const amount = h('p', { class: 'refund-amount', 'data-part': 'amount' });
        const failure = h('p', { class: 'error', tabindex: '-1' });
        const lines = leftOf(order).map((line, place) => lineRow(line, `${prefix}-${place}`, () => changed()));
        const restock = h('input', { type: 'checkbox', name: 'restock', checked: true, 'aria-describedby': `${prefix}-restock` });
        const reason = h('input', { type: 'text', id: `${prefix}-reason`, name: 'reason', maxlength: 500, autocomplete: 'off', 'aria-describedby': `${prefix}-why` });
        const button = h('button', { class: 'primary danger', type: 'submit', text: t('refund.submit') });
        const chosen = () => lines.map((line) => line.chosen()).filter(Boolean);
        // All parts together have their share of what was paid, rounded down. The products may be above 2^53.
        const before = order.orderProducts.reduce((sum, { price, refundedQuantity }) => sum + price * refundedQuantity, 0);
        function amountOf(parts) {
            const value = BigInt(before + parts.reduce((sum, part) => sum + part.value, 0));
            return totalPrice > 0 ? Number((BigInt(finalPrice) * value) / BigInt(totalPrice)) - refundedPrice : 0;
        }
        const isValid = (parts) => parts.length > 0 && parts.every(({ quantity }) => Number.isInteger(quantity));
        function changed() {
            const parts = chosen();
            updateText(failure, '');
            updateText(amount, isValid(parts) ? t('refund.amount', { amount: won(amountOf(parts)), paid: won(finalPrice), before: won(refundedPrice) }) : t('refund.none'));
        }
        const form = h('form', { class: 'refund' },
            h('fieldset', {}, h('legend', { text: t('refund.lines') }), h('ul', { class: 'refund-lines' }, ...lines.map(({ row }) => row))),
            h('div', { class: 'field' }, h('label', { class: 'choice' }, restock, h('span', { text: t('refund.restock') })), h('p', { class: 'sub', id: `${prefix}-restock`, text: t('refund.restock.hint') })),
            h('div', { class: 'field' }, h('label', { for: reason.id }, t('field.reason'), h('span', { class: 'sub', text: ` ${t('optional')}` })), reason, h('p', { class: 'sub', id: `${prefix}-why`, text: t('refund.reason.hint') })),
            amount, failure,
            h('div', { class: 'buttons' }, h('button', { class: 'action', type: 'button', text: t('cancel'), onclick: () => dialog.close() }), button));
        const fail = (text) => {
            updateText(failure, text);
            failure.focus();
        };
        form.addEventListener('submit', async (event) => {
            event.preventDefault();
            if (button.disabled) return;
            updateText(failure, '');
            const parts = chosen();
            if (parts.length === 0) {
                fail(t('refund.none'));
                return;
            }
            const units = parts.reduce((sum, { quantity }) => sum + quantity, 0);
            const go = await confirm({ title: t('refund.submit'), text: t(restock.checked ? 'refund.ask' : 'refund.ask.offSale', { n: units, id, amount: won(amountOf(parts)) }), yes: t('refund.submit') });
            if (!go) return;
            button.disabled = true;
            try {
                const request = { lines: parts.map(({ productId, quantity }) => ({ productId, quantity })), restock: restock.checked };
                if (reason.value.trim() !== '') request.reason = reason.value.trim();
                const after = await write('POST', `/orders/${id}/refund`, request);
                dialog.close();
                announce(t('refund.done', { amount: won(after.refundedPrice - refundedPrice), id }));
                done(after.refundedPrice - refundedPrice);
            } catch (error) {
                fail(errorText(error));
            } finally {
                button.disabled = false;
            }
        });
        body.append(form);
        changed();
        lines[0].check.focus();
    }, { size: '' });
}
