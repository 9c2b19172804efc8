// The end of a run in words and numbers: on the terminal, and as JSON for the report (report.py) where SUMMARY_FILE says.

import { knobs } from './knobs.js';

const BOOKS = 'the books';

const number = (value) => String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ',');
export const plural = (value, one, many = `${one}s`) => ({ value: number(value), words: value === 1 ? one : many });

export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

/** The values of a metric; none of them is missing. */
const reader = (metrics) => (name, stat = 'count') => {
    const metric = metrics[name];
    return (metric && metric.values[stat]) || 0;
};

function judged({ kind, metric, condition, words }, metrics) {
    const found = metrics[metric];
    const [, stat] = /^([a-z]+(?:\([\d.]+\))?)/.exec(condition);
    const threshold = found && found.thresholds && found.thresholds[condition];
    const actual = found ? found.values[stat] : undefined;
    return { kind, metric, condition, words, actual: actual === undefined ? null : actual, ok: !!threshold && threshold.ok };
}

/** `of` is at most `factor` times `to`, plus `slack`: what k6's thresholds, which are constants, can't say. */
function compared({ words, metric, stat, of, to, factor, slack }, read) {
    const [actual, base] = [read(`${metric}{${of}}`, stat), read(`${metric}{${to}}`, stat)];
    const limit = base * factor + slack;
    const condition = `${stat} <= ${factor} x ${Math.round(base)} + ${slack}`;
    return { kind: 'comparison', metric: `${metric}{${of}}`, condition, words, actual, base, limit, ok: actual <= limit };
}

/**
 * k6's handleSummary for a scenario.
 * - `title`, `proves`: what it is, in words;
 * - `rules`: what has to hold, and `comparisons`, the same between two parts of a metric;
 * - `headline(read)`: the few numbers that it is about, `{value, words, ok?}` each.
 */
export const summarize = ({ name, title, proves, rules, comparisons = [], headline }) => (data) => {
    const read = reader(data.metrics);
    const laws = [
        ...rules.filter(({ kind }) => kind !== 'hidden').map((rule) => judged(rule, data.metrics)),
        ...comparisons.map((comparison) => compared(comparison, read)),
    ];
    const balanced = read('books_balanced') === 1;
    const numbers = [
        ...headline(read),
        { value: balanced ? 'balanced' : read('audits') ? 'not balanced' : 'not audited', words: BOOKS, ok: balanced },
    ];
    const passed = laws.every(({ ok }) => ok);
    const summary = {
        scenario: name,
        title,
        proves,
        passed,
        headline: numbers,
        laws,
        knobs,
        seconds: data.state.testRunDurationMs / 1000,
        metrics: data.metrics,
    };
    const out = { stdout: text(summary, read) };
    if (__ENV.SUMMARY_FILE) out[__ENV.SUMMARY_FILE] = JSON.stringify(summary);
    return out;
};

function text({ scenario, passed, headline, laws }, read) {
    const said = headline.map(({ value, words }) => (words === BOOKS ? `${words} ${value}` : `${value} ${words}`)).join(' · ');
    const shown = (value) => (value === null ? 'no value' : Number.isInteger(value) ? number(value) : value.toFixed(3));
    const lines = laws.map(({ ok, words, condition, actual }) => `  ${ok ? 'ok   ' : 'WRONG'}  ${words} (${condition}): ${shown(actual)}`);
    const ms = (stat) => milliseconds(read('api_latency', stat));
    return [
        '',
        `${scenario}: ${passed ? 'PASSED' : 'FAILED'}`,
        `  ${said}`,
        `  ${number(read('api_latency'))} answers; half within ${ms('med')}, 95 % within ${ms('p(95)')}, 99 % within ${ms('p(99)')}`,
        '',
        ...lines,
        '',
        '',
    ].join('\n');
}
