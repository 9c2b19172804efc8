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
function open(title, { size = '' } = {}) {
    const id = `dialog-${(serial += 1)}`;
    const body = h('div', { class: 'dialog-body' });
    const dialog = h('dialog', { class: `sheet ${size}`.trim(), 'aria-labelledby': id },
        h('header', {},
            h('h2', { id, text: title }),
            h('button', { class: 'quiet', type: 'button', 'aria-label': t('close'), onclick: () => dialog.close() }, icon('close'))),
        body);
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    return { dialog, body };
}

/// The reasons that the service appends to a refusal: their message, and the field of a form that they are about.
const REASONS = {
    'the products of the group have another limit per user': ['reason.group', 'limitPerUser'],
    'the window is empty, or the group has no limit': ['reason.terms', 'closesAt'],
    "the campaign's window is empty": ['reason.campaign', 'closesAt'],
    "the campaign's window is no window": ['reason.campaign', 'closesAt'],
    "a campaign can't have closed before now": ['reason.past', 'closesAt'],
    'the product would have too many units': ['reason.units', 'stockDelta'],
};

const reasonOf = (error) => REASONS[/\(([^()]+)\)$/.exec(error.message ?? '')?.[1]] ?? [];

/// The message of an error; the service's own where the page has none.
export function errorText(error) {
    const [reason] = reasonOf(error);
    if (reason) return t(reason);
    const key = `error.${error.code}`;
    if (has(key)) return t(key);
    return error.message ? `${error.message} (${error.code})` : String(error.code ?? error);
}

/// The name of the field that an error is about; undefined if it is about none.
export const errorField = (error) => reasonOf(error)[1];

const INPUT_MODES = { number: 'numeric', signed: 'text' };

/// A field of a form, with its label, hint and error.
export function field(spec, id) {
    const { name, label, kind = 'text', value = '', hint, options, required = true } = spec;
    const hintId = hint ? `${id}-hint` : null;
    const common = { id, name, required, 'aria-describedby': [hintId, `${id}-error`].filter(Boolean).join(' ') };
    let control;
    if (kind === 'choice') {
        control = h('select', common, ...options.map(([option, text]) => h('option', { value: option, text, selected: option === value })));
    } else if (kind === 'number' || kind === 'signed') {
        control = h('input', { ...common, type: 'number', inputmode: INPUT_MODES[kind], step: 1, min: spec.min, max: spec.max, value: value ?? '' });
    } else if (kind === 'time') {
        control = h('input', { ...common, type: 'datetime-local', step: 1, value: value ?? '' });
    } else {
        control = h('input', { ...common, type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: spec.maxLength, pattern: spec.pattern, placeholder: spec.placeholder, list: spec.list ? `${id}-list` : null, value: value ?? '' });
    }
    return h('div', { class: spec.half ? 'field half' : 'field' },
        h('label', { for: id, text: label }, required ? null : h('span', { class: 'sub', text: ` ${t('optional')}` })),
        control,
        spec.list ? h('datalist', { id: `${id}-list` }, ...spec.list.map((option) => h('option', { value: option }))) : null,
        hint ? h('p', { class: 'sub', id: hintId, text: hint }) : null,
        h('p', { class: 'error', id: `${id}-error` }));
}

/// The value of a field; null if it is empty.
export const readField = (form, { name, kind }) => {
    const text = form.elements[name].value.trim();
    if (text === '') return null;
    if (kind === 'number' || kind === 'signed') return Number(text);
    // The browser omits seconds of zero.
    if (kind === 'time') return text.length === 16 ? `${text}:00` : text.slice(0, 19);
    return text;
};

/// Removes the errors at the fields of a form.
export function clearErrors(form) {
    for (const control of form.querySelectorAll('[aria-invalid]')) {
        control.removeAttribute('aria-invalid');
        updateText(form.querySelector(`[id="${control.id}-error"]`), '');
    }
}

/// Shows an error at the field `name` of a form, and moves the focus there. False if the form has no such field.
export function showError(form, name, text) {
    const control = name && form.elements[name];
    const place = control && form.querySelector(`[id="${control.id}-error"]`);
    if (!place) return false;
    control.closest('details')?.setAttribute('open', '');
    control.setAttribute('aria-invalid', 'true');
    updateText(place, text);
    control.focus();
    return true;
}

/// Opens a form with `fields`. `check(values)` returns a validation error, `{ field, text }` for one of a field, or null;
/// `question(values)` a confirmation to ask first, or null; `send(values)` sends the request and returns the text to announce.
/// `folded`: the heading of the fields that are folded away.
export function openForm({ title, lead, fields, submit, danger = false, question, check, send, folded }) {
    const { dialog, body } = open(title);
    const failure = h('p', { class: 'error', tabindex: '-1' });
    const button = h('button', { class: danger ? 'primary danger' : 'primary', type: 'submit', text: submit });
    const toField = (spec) => field(spec, `${dialog.getAttribute('aria-labelledby')}-${spec.name}`);
    const sections = [...new Set(fields.map((spec) => spec.folded).filter(Boolean))];
    const form = h('form', { class: 'fields' },
        lead ? h('p', { class: 'lead', text: lead }) : null,
        ...fields.filter((spec) => !spec.folded).map(toField),
        ...sections.map((section) => h('details', { class: 'folded' }, h('summary', { text: section === true ? folded : section }), h('div', { class: 'fields' }, ...fields.filter((spec) => spec.folded === section).map(toField)))),
        failure,
        h('div', { class: 'buttons' }, h('button', { class: 'action', type: 'button', text: t('cancel'), onclick: () => dialog.close() }), button));
    const fail = (text, name) => {
        if (showError(form, name, text)) return;
        updateText(failure, text);
        failure.focus();
    };
    form.addEventListener('submit', async (event) => {
        event.preventDefault();
        if (button.disabled) return;
        updateText(failure, '');
        clearErrors(form);
        const values = Object.fromEntries(fields.map((spec) => [spec.name, readField(form, spec)]));
        const wrong = check?.(values);
        if (wrong) {
            fail(wrong.text ?? wrong, wrong.field);
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
            fail(errorText(error), errorField(error));
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

/// Opens a wide dialog to read; `fill(body, dialog)` adds its content. `size`: `full` is as wide as the page.
export function openSheet(title, fill, { size = 'wide' } = {}) {
    const { dialog, body } = open(title, { size });
    fill(body, dialog);
    return dialog;
}

/// Runs `load()` at once and every `interval` ms, while the dialog is open and the page is visible. Returns a function that runs it now.
export function keepLoading(dialog, interval, load) {
    const timer = setInterval(() => document.visibilityState === 'visible' && load(), interval);
    dialog.addEventListener('close', () => clearInterval(timer));
    load();
    return load;
}

/// Shows pages of `{content, page, size, totalElements}`: `load(page)` fetches one, `show(content, box, reload)` renders it. `last`:
/// begins with the last page.
export function paginate(body, load, show, { last = false } = {}) {
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
            let answer = await load(to);
            const lastPage = Math.ceil(answer.totalElements / answer.size) - 1;
            if (last && lastPage > to) answer = await load((to = lastPage));
            if (request !== requests) return;
            last = false;
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
