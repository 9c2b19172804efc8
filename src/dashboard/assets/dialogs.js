// Dialogs: a form that sends a request, a confirmation before an irreversible action, a sheet to read.

import { h, icon, updateText } from './dom.js';
import { has, t } from './i18n.js';

let announcement = () => {};
/// Sets the callback for the results of actions.
export function onAnnouncement(callback) {
    announcement = callback;
}
/// Announces the result of an action.
export const announce = (text) => announcement(text);

let serial = 0;

/// Opens a modal dialog with a heading and a close button. Closing removes it; the browser restores the focus.
function open(title, { wide = false } = {}) {
    const id = `dialog-${(serial += 1)}`;
    const body = h('div', { class: 'dialog-body' });
    const dialog = h('dialog', { class: wide ? 'sheet wide' : 'sheet', 'aria-labelledby': id },
        h('header', {},
            h('h2', { id, text: title }),
            h('button', { class: 'quiet', type: 'button', 'aria-label': t('close'), onclick: () => dialog.close() }, icon('close'))),
        body);
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    return { dialog, body };
}

/// The message of an error; the service's own where the page has none.
export function errorText(error) {
    const key = `error.${error.code}`;
    if (has(key)) return t(key);
    return error.message ? `${error.message} (${error.code})` : String(error.code ?? error);
}

const INPUT_MODES = { number: 'numeric', signed: 'text' };

function field(spec, id) {
    const { name, label, kind = 'text', value = '', hint, options, required = true } = spec;
    const hintId = hint ? `${id}-hint` : null;
    const common = { id, name, required, 'aria-describedby': hintId };
    let control;
    if (kind === 'choice') {
        control = h('select', common, ...options.map(([option, text]) => h('option', { value: option, text, selected: option === value })));
    } else if (kind === 'number' || kind === 'signed') {
        control = h('input', { ...common, type: 'number', inputmode: INPUT_MODES[kind], step: 1, min: spec.min, max: spec.max, value });
    } else if (kind === 'time') {
        control = h('input', { ...common, type: 'datetime-local', step: 1, value });
    } else {
        control = h('input', { ...common, type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: spec.maxLength, pattern: spec.pattern, list: spec.list ? `${id}-list` : null, value });
    }
    return h('div', { class: spec.half ? 'field half' : 'field' },
        h('label', { for: id, text: label }, required ? null : h('span', { class: 'sub', text: ` ${t('optional')}` })),
        control,
        spec.list ? h('datalist', { id: `${id}-list` }, ...spec.list.map((option) => h('option', { value: option }))) : null,
        hint ? h('p', { class: 'sub', id: hintId, text: hint }) : null);
}

const read = (form, { name, kind }) => {
    const text = form.elements[name].value.trim();
    if (text === '') return null;
    if (kind === 'number' || kind === 'signed') return Number(text);
    // The browser omits seconds of zero.
    if (kind === 'time') return text.length === 16 ? `${text}:00` : text.slice(0, 19);
    return text;
};

/// Opens a form with `fields`. `check(values)` returns a validation error or null; `question(values)` a confirmation to ask first, or
/// null; `send(values)` sends the request and returns the text to announce.
export function openForm({ title, lead, fields, submit, danger = false, question, check, send, folded }) {
    const { dialog, body } = open(title);
    const failure = h('p', { class: 'error', tabindex: '-1' });
    const button = h('button', { class: danger ? 'primary danger' : 'primary', type: 'submit', text: submit });
    const toField = (spec) => field(spec, `${dialog.getAttribute('aria-labelledby')}-${spec.name}`);
    const form = h('form', { class: 'fields' },
        lead ? h('p', { class: 'lead', text: lead }) : null,
        ...fields.filter((spec) => !spec.folded).map(toField),
        folded ? h('details', {}, h('summary', { text: folded }), h('div', { class: 'fields' }, ...fields.filter((spec) => spec.folded).map(toField))) : null,
        failure,
        h('div', { class: 'buttons' }, h('button', { class: 'action', type: 'button', text: t('cancel'), onclick: () => dialog.close() }), button));
    const fail = (text) => {
        updateText(failure, text);
        failure.focus();
    };
    form.addEventListener('submit', async (event) => {
        event.preventDefault();
        if (button.disabled) return;
        updateText(failure, '');
        const values = Object.fromEntries(fields.map((spec) => [spec.name, read(form, spec)]));
        const wrong = check?.(values);
        if (wrong) {
            fail(wrong);
            return;
        }
        const first = question?.(values);
        if (first && !(await confirm(first))) return;
        button.disabled = true;
        try {
            const text = await send(values);
            dialog.close();
            announce(text);
        } catch (error) {
            fail(errorText(error));
        } finally {
            button.disabled = false;
        }
    });
    // Unfolds the fields: the browser reports no error of a hidden field.
    form.addEventListener('invalid', ({ target }) => target.closest('details')?.setAttribute('open', ''), true);
    body.append(form);
    (form.querySelector('[data-first]') ?? form.querySelector('input, select'))?.focus();
}

/// Asks for a confirmation. Resolves to true for yes; the default is no.
export function confirm({ title, text, yes, danger = true }) {
    return new Promise((resolve) => {
        const { dialog, body } = open(title);
        const no = h('button', { class: 'action', type: 'button', text: t('cancel'), onclick: () => dialog.close() });
        const go = h('button', { class: danger ? 'primary danger' : 'primary', type: 'button', text: yes, onclick: () => dialog.close('yes') });
        dialog.setAttribute('role', 'alertdialog');
        const id = `${dialog.getAttribute('aria-labelledby')}-text`;
        dialog.setAttribute('aria-describedby', id);
        body.append(h('p', { id, class: 'question', text }), h('div', { class: 'buttons' }, no, go));
        dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'));
        no.focus();
    });
}

/// Asks for a confirmation, sends, and announces the result. Shows an error in a dialog.
export async function confirmAndRun(question, send) {
    if (!(await confirm(question))) return;
    try {
        announce(await send());
    } catch (error) {
        const { body, dialog } = open(question.title);
        const close = h('button', { class: 'action', type: 'button', text: t('close'), onclick: () => dialog.close() });
        body.append(h('p', { class: 'error', text: errorText(error) }), h('div', { class: 'buttons' }, close));
        close.focus();
    }
}

/// Opens a wide dialog to read; `fill(body, dialog)` adds its content.
export function openSheet(title, fill) {
    const { dialog, body } = open(title, { wide: true });
    fill(body, dialog);
    return dialog;
}

/// Shows pages of `{content, page, size, totalElements}`: `load(page)` fetches one, `show(content, box, reload)` renders it.
export function paginate(body, load, show) {
    const box = h('div', { class: 'page' });
    const range = h('span', { class: 'sub' });
    const turn = (by, key) => h('button', { class: 'action', type: 'button', text: t(key), onclick: () => go(page + by) });
    const [back, forward] = [turn(-1, 'previous'), turn(1, 'next')];
    const foot = h('div', { class: 'buttons pager' }, range, back, forward);
    let page = 0;
    let requests = 0;
    async function go(to) {
        const request = (requests += 1);
        box.setAttribute('aria-busy', 'true');
        try {
            const answer = await load(to);
            if (request !== requests) return;
            page = to;
            const { content, size, totalElements: total } = answer;
            show(content, box, () => go(page));
            foot.hidden = total <= size;
            back.disabled = page === 0;
            forward.disabled = (page + 1) * size >= total;
            updateText(range, t('page', { from: page * size + 1, to: page * size + content.length, total }));
        } catch (error) {
            if (request === requests) box.replaceChildren(h('p', { class: 'error', text: errorText(error) }));
        } finally {
            if (request === requests) box.removeAttribute('aria-busy');
        }
    }
    foot.hidden = true;
    box.append(h('p', { class: 'sub', text: t('loading') }));
    body.append(box, foot);
    go(0);
    return { reload: () => go(0) };
}
