// The operator log: the actions of operators, newest first.

import { read } from './api.js';
import { openSheet, paginate } from './dialogs.js';
import { h } from './dom.js';
import { readIso, t } from './i18n.js';

/// Opens the operator log.
export function openOperatorLog() {
    openSheet(t('operatorLog.title'), (body) => {
        const input = h('input', { id: 'operator-log-operator', type: 'text', maxlength: 260, autocomplete: 'off' });
        const form = h('form', { class: 'search' }, h('label', { for: 'operator-log-operator', text: t('operatorLog.filter') }), input, h('button', { class: 'action', type: 'submit', text: t('timeline.search') }));
        body.append(form);
        const list = paginate(body, (page) => {
            const operator = input.value.trim();
            return read(`/operator-log?page=${page}&size=50${operator ? `&operator=${encodeURIComponent(operator)}` : ''}`);
        }, (entries, box) => {
            if (entries.length === 0) {
                box.replaceChildren(h('p', { class: 'nothing', text: t('operatorLog.none') }));
                return;
            }
            box.replaceChildren(h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('operatorLog.title') },
                h('table', { class: 'records operator-log' },
                    h('caption', { class: 'unseen', text: t('operatorLog.title') }),
                    h('thead', {}, h('tr', {}, ...['at', 'operator', 'action', 'status', 'detail'].map((column) => h('th', { scope: 'col', text: t(`operatorLog.${column}`) })))),
                    h('tbody', {}, ...entries.map(row)))));
        });
        form.addEventListener('submit', (event) => {
            event.preventDefault();
            list.reload();
        });
    });
}

function row({ operator, role, action, target, detail, status, at, requestId }) {
    const more = [target, typeof detail === 'string' ? detail : JSON.stringify(detail)].filter(Boolean).join(' · ');
    const failed = status >= 400;
    return h('tr', { title: requestId ? `${t('operatorLog.request')}: ${requestId}` : null },
        h('td', { class: 'when', text: readIso(at) }),
        h('td', {}, operator, role ? h('span', { class: 'sub', text: ` ${t(`role.${role}`)}` }) : null),
        h('td', { text: action }),
        h('td', { class: failed ? 'alarm' : null, text: String(status) }),
        h('td', { class: 'detail', text: more }));
}
