// The result of a run: text on the terminal, and JSON for the report (report.py) in the file SUMMARY_FILE.

import { chosen } from './options.js';

const AUDIT_LABEL = 'the books';

const number = (value) => String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ',');
export const plural = (value, one, many = `${one}s`) => ({ value: number(value), label: value === 1 ? one : many });

export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

/** Reads a value of a metric; 0 where the metric has no sample. */
const reader = (metrics) => (name, stat = 'count') => {
    const metric = metrics[name];
    return (metric && metric.values[stat]) || 0;
};

function evaluate({ kind, metric, condition, description }, metrics) {
    const found = metrics[metric];
    const [, stat] = /^([a-z]+(?:\([\d.]+\))?)/.exec(condition);
    const threshold = found && found.thresholds && found.thresholds[condition];
    const actual = found ? found.values[stat] : undefined;
    return { kind, metric, condition, description, actual: actual === undefined ? null : actual, ok: !!threshold && threshold.ok };
}

/** `of` is at most `factor` times `to`, plus `slack`. k6's own thresholds compare with constants only. */
function compare({ description, metric, stat, of, to, factor, slack }, read) {
    const [actual, base] = [read(`${metric}{${of}}`, stat), read(`${metric}{${to}}`, stat)];
    const limit = base * factor + slack;
    const condition = `${stat} <= ${factor} x ${Math.round(base)} + ${slack}`;
    return { kind: 'comparison', metric: `${metric}{${of}}`, condition, description, actual, base, limit, ok: actual <= limit };
}

/**
 * k6's handleSummary for a scenario.
 * - `title`, `proves`: its name and its claim, for the report;
 * - `rules`: conditions on metrics; `comparisons`: conditions between two parts of a metric;
 * - `headline(read)`: the numbers of the claim, `{value, label, ok?}` each.
 */
export const summarize = ({ name, title, proves, rules, comparisons = [], headline }) => (data) => {
    const read = reader(data.metrics);
    const results = [
        ...rules.filter(({ kind }) => kind !== 'hidden').map((rule) => evaluate(rule, data.metrics)),
        ...comparisons.map((comparison) => compare(comparison, read)),
    ];
    const balanced = read('audit_balanced') === 1;
    const numbers = [
        ...headline(read),
        { value: balanced ? 'balanced' : read('audits') ? 'not balanced' : 'not audited', label: AUDIT_LABEL, ok: balanced },
    ];
    const passed = results.every(({ ok }) => ok);
    const summary = {
        scenario: name,
        title,
        proves,
        passed,
        headline: numbers,
        rules: results,
        options: chosen,
        seconds: data.state.testRunDurationMs / 1000,
        metrics: data.metrics,
    };
    const out = { stdout: text(summary, read) };
    if (__ENV.SUMMARY_FILE) out[__ENV.SUMMARY_FILE] = JSON.stringify(summary);
    return out;
};

function text({ scenario, passed, headline, rules }, read) {
    const numbers = headline.map(({ value, label }) => (label === AUDIT_LABEL ? `${label} ${value}` : `${value} ${label}`)).join(' · ');
    const shown = (value) => (value === null ? 'no value' : Number.isInteger(value) ? number(value) : value.toFixed(3));
    const lines = rules.map(({ ok, description, condition, actual }) => `  ${ok ? 'ok   ' : 'WRONG'}  ${description} (${condition}): ${shown(actual)}`);
    const ms = (stat) => milliseconds(read('api_latency', stat));
    return [
        '',
        `${scenario}: ${passed ? 'PASSED' : 'FAILED'}`,
        `  ${numbers}`,
        `  ${number(read('api_latency'))} answers; half within ${ms('med')}, 95 % within ${ms('p(95)')}, 99 % within ${ms('p(99)')}`,
        '',
        ...lines,
        '',
        '',
    ].join('\n');
}
