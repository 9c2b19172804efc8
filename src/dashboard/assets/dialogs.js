// Dialogs: a form that sends something, a question before what can't be undone, a sheet to read.

import { h, icon, say } from './dom.js';
import { has, t } from './i18n.js';

/// Says what came of an act.
let announce = () => {};
export function whenSaid(callback) {
    announce = callback;
}
export const tell = (text) => announce(text);

let serial = 0;

/// A modal dialog with a heading and a way out; gone from the page once it is closed. Focus goes back to where it was by itself.
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

/// What a refusal is in the page's words; the service's own where the page has none.
export function explain(refused) {
    const key = `error.${refused.code}`;
    if (has(key)) return t(key);
    return refused.message ? `${refused.message} (${refused.code})` : String(refused.code ?? refused);
}

const NOTES = { number: 'numeric', signed: 'text' };

function field(spec, id) {
    const { name, label, kind = 'text', value = '', hint, options, required = true } = spec;
    const hintId = hint ? `${id}-hint` : null;
    const common = { id, name, required, 'aria-describedby': hintId };
    let control;
    if (kind === 'choice') {
        control = h('select', common, ...options.map(([option, text]) => h('option', { value: option, text, selected: option === value })));
    } else if (kind === 'number' || kind === 'signed') {
        control = h('input', { ...common, type: 'number', inputmode: NOTES[kind], step: 1, min: spec.min, max: spec.max, value });
    } else if (kind === 'time') {
        control = h('input', { ...common, type: 'datetime-local', step: 1, value });
    } else {
        control = h('input', { ...common, type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: spec.most, pattern: spec.pattern, list: spec.list ? `${id}-list` : null, value });
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
    // A browser leaves out seconds that are zero.
    if (kind === 'time') return text.length === 16 ? `${text}:00` : text.slice(0, 19);
    return text;
};

/// Asks for `fields`; `send(values)` does it and returns what to say; `ask(values)` returns a question to be answered first, or
/// nothing. `check(values)` returns what is wrong with them, or nothing.
export function ask({ title, lead, fields, submit, danger = false, question, check, send, folded }) {
    const { dialog, body } = open(title);
    const failure = h('p', { class: 'error', tabindex: '-1' });
    const button = h('button', { class: danger ? 'primary danger' : 'primary', type: 'submit', text: submit });
    const made = (spec) => field(spec, `${dialog.getAttribute('aria-labelledby')}-${spec.name}`);
    const form = h('form', { class: 'fields' },
        lead ? h('p', { class: 'lead', text: lead }) : null,
        ...fields.filter((spec) => !spec.folded).map(made),
        folded ? h('details', {}, h('summary', { text: folded }), h('div', { class: 'fields' }, ...fields.filter((spec) => spec.folded).map(made))) : null,
        failure,
        h('div', { class: 'buttons' }, h('button', { class: 'act', type: 'button', text: t('cancel'), onclick: () => dialog.close() }), button));
    const fail = (text) => {
        say(failure, text);
        failure.focus();
    };
    form.addEventListener('submit', async (event) => {
        event.preventDefault();
        if (button.disabled) return;
        say(failure, '');
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
            const said = await send(values);
            dialog.close();
            announce(said);
        } catch (refused) {
            fail(explain(refused));
        } finally {
            button.disabled = false;
        }
    });
    // A field that is not shown can't say what is wrong with it.
    form.addEventListener('invalid', ({ target }) => target.closest('details')?.setAttribute('open', ''), true);
    body.append(form);
    (form.querySelector('[data-first]') ?? form.querySelector('input, select'))?.focus();
}

/// A yes or no, which is no by default: `{title, text, yes, danger}`.
export function confirm({ title, text, yes, danger = true }) {
    return new Promise((resolve) => {
        const { dialog, body } = open(title);
        const no = h('button', { class: 'act', type: 'button', text: t('cancel'), onclick: () => dialog.close() });
        const go = h('button', { class: danger ? 'primary danger' : 'primary', type: 'button', text: yes, onclick: () => dialog.close('yes') });
        dialog.setAttribute('role', 'alertdialog');
        const id = `${dialog.getAttribute('aria-labelledby')}-text`;
        dialog.setAttribute('aria-describedby', id);
        body.append(h('p', { id, class: 'question', text }), h('div', { class: 'buttons' }, no, go));
        dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'));
        no.focus();
    });
}

/// Asks, does it, and says what came of it; a refusal is a dialog of its own.
export async function confirmed(question, send) {
    if (!(await confirm(question))) return;
    try {
        announce(await send());
    } catch (refused) {
        const { body, dialog } = open(question.title);
        const close = h('button', { class: 'act', type: 'button', text: t('close'), onclick: () => dialog.close() });
        body.append(h('p', { class: 'error', text: explain(refused) }), h('div', { class: 'buttons' }, close));
        close.focus();
    }
}

/// Something to read: `fill(body)` puts it in, and may be asked again.
export function sheet(title, fill) {
    const { dialog, body } = open(title, { wide: true });
    fill(body, dialog);
    return dialog;
}

/// Pages of `{content, page, size, totalElements}`: `load(page)` gets one, `show(content, box, again)` puts it into the box.
export function pages(body, load, show) {
    const box = h('div', { class: 'page' });
    const where = h('span', { class: 'sub' });
    const turn = (by, key) => h('button', { class: 'act', type: 'button', text: t(key), onclick: () => go(page + by) });
    const [back, on] = [turn(-1, 'previous'), turn(1, 'next')];
    const foot = h('div', { class: 'buttons pager' }, where, back, on);
    let page = 0;
    let asked = 0;
    async function go(to) {
        const mine = (asked += 1);
        box.setAttribute('aria-busy', 'true');
        try {
            const answer = await load(to);
            if (mine !== asked) return;
            page = to;
            const { content, size, totalElements: total } = answer;
            show(content, box, () => go(page));
            foot.hidden = total <= size;
            back.disabled = page === 0;
            on.disabled = (page + 1) * size >= total;
            say(where, t('page', { from: page * size + 1, to: page * size + content.length, total }));
        } catch (refused) {
            if (mine === asked) box.replaceChildren(h('p', { class: 'error', text: explain(refused) }));
        } finally {
            if (mine === asked) box.removeAttribute('aria-busy');
        }
    }
    foot.hidden = true;
    box.append(h('p', { class: 'sub', text: t('loading') }));
    body.append(box, foot);
    go(0);
    return { reload: () => go(0) };
}
