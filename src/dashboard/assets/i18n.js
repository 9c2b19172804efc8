// The language of the page, and the format of numbers, money and times in it. Times are in the shop's zone, not the browser's.

import { messages } from './messages.js';

const LOCALES = { ko: 'ko-KR', en: 'en-GB' };
const NOTHING = '–';

let zone = 'Asia/Seoul';
const formats = new Map();

export const language = () => (document.documentElement.lang === 'ko' ? 'ko' : 'en');
export const shopZone = () => zone;

export function setLanguage(to) {
    document.documentElement.lang = to;
    formats.clear();
    translate(document);
}

/// Sets the shop's zone, as the feed names it. Ignores a zone unknown to the browser.
export function setZone(to) {
    if (typeof to !== 'string' || to === zone) return;
    try {
        new Intl.DateTimeFormat('en', { timeZone: to });
    } catch {
        return;
    }
    zone = to;
    formats.clear();
}

/// Whether there is a message with that key.
export const has = (key) => Object.hasOwn(messages[language()], key);

/// The message of `key`. `{name}` is replaced by a value, `{name|one|many}` by a form by number, with # for the number.
export function t(key, values = {}) {
    const text = messages[language()][key] ?? key;
    return text.replace(/\{(\w+)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, name, one, many) => {
        const value = values[name];
        if (one === undefined) return String(value ?? NOTHING);
        return (value === 1 ? one : many).replace('#', number(value));
    });
}

/// Sets the messages of the page: `data-t` is an element's text, `data-t-label` its accessible name.
export function translate(root) {
    for (const element of root.querySelectorAll('[data-t]')) element.textContent = t(element.dataset.t);
    for (const element of root.querySelectorAll('[data-t-label]')) element.setAttribute('aria-label', t(element.dataset.tLabel));
}

const known = (value) => typeof value === 'number' && Number.isFinite(value);

function numberFormat(options) {
    const key = JSON.stringify(options);
    if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(LOCALES[language()], options));
    return formats.get(key);
}

function timeFormat(options) {
    const key = `t${JSON.stringify(options)}`;
    if (!formats.has(key)) {
        formats.set(key, new Intl.DateTimeFormat(LOCALES[language()], { timeZone: zone, hourCycle: 'h23', ...options }));
    }
    return formats.get(key);
}

/// A whole number with separators.
export const number = (value) => (known(value) ? numberFormat({ maximumFractionDigits: 0 }).format(value) : NOTHING);

/// A rate: one decimal place from 0 to 10, none otherwise.
export function rate(value) {
    if (!known(value)) return NOTHING;
    const digits = value > 0 && value < 10 ? 1 : 0;
    return numberFormat({ minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/// A number for an axis: at most one decimal place.
export const short = (value) => (known(value) ? numberFormat({ maximumFractionDigits: 1 }).format(value) : NOTHING);

export function share(part, whole) {
    if (!known(part) || !known(whole) || whole <= 0) return NOTHING;
    const percent = (part / whole) * 100;
    // 0 % and 100 % are exact.
    if (percent > 0 && percent < 0.1) return `<${numberFormat({}).format(0.1)}%`;
    if (percent > 99 && percent < 100) return `${numberFormat({ maximumFractionDigits: 1 }).format(Math.min(99.9, percent))}%`;
    return `${numberFormat({ maximumFractionDigits: percent < 1 ? 1 : 0 }).format(percent)}%`;
}

export function won(value) {
    if (!known(value)) return NOTHING;
    return language() === 'ko' ? `${number(value)}원` : `₩${number(value)}`;
}

/// A compact amount of money: 1.2억, ₩123M.
export function wonShort(value) {
    if (!known(value)) return NOTHING;
    if (Math.abs(value) < 1e6) return won(value);
    const short = numberFormat({ notation: 'compact', maximumSignificantDigits: 3, useGrouping: true }).format(value);
    return language() === 'ko' ? `${short}원` : `₩${short}`;
}

export function bytes(value) {
    if (!known(value)) return NOTHING;
    const units = ['B', 'KB', 'MB', 'GB', 'TB'];
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${numberFormat({ maximumFractionDigits: value < 10 && unit > 0 ? 1 : 0 }).format(value)} ${units[unit]}`;
}

export function ms(value) {
    if (!known(value)) return NOTHING;
    if (value >= 1000) return `${numberFormat({ maximumFractionDigits: value < 10000 ? 1 : 0 }).format(value / 1000)} s`;
    return `${numberFormat({ maximumFractionDigits: value < 10 ? 1 : 0 }).format(value)} ms`;
}

/// A duration in its two largest units.
export function duration(seconds) {
    if (!known(seconds)) return NOTHING;
    const [day, hour, minute, second] = language() === 'ko' ? ['일', '시간', '분', '초'] : [' d', ' h', ' min', ' s'];
    if (seconds > 0 && seconds < 10) return `${numberFormat({ maximumFractionDigits: seconds < 1 ? 2 : 1 }).format(seconds)}${second}`;
    const whole = Math.round(seconds);
    const two = (a, an, b, bn) => (b > 0 ? `${number(a)}${an} ${number(b)}${bn}` : `${number(a)}${an}`);
    if (whole < 60) return `${whole}${second}`;
    if (whole < 3600) return two(Math.floor(whole / 60), minute, whole % 60, second);
    if (whole < 86400) return two(Math.floor(whole / 3600), hour, Math.floor((whole % 3600) / 60), minute);
    return two(Math.floor(whole / 86400), day, Math.floor((whole % 86400) / 3600), hour);
}

/// A duration that the page counts: in whole seconds, in minutes from ten minutes on.
export function counted(seconds) {
    if (seconds < 10) return `${Math.max(0, Math.round(seconds))}${language() === 'ko' ? '초' : ' s'}`;
    return duration(seconds < 600 ? seconds : Math.round(seconds / 60) * 60);
}

export const clock = (at) => (known(at) ? timeFormat({ hour: '2-digit', minute: '2-digit', second: '2-digit' }).format(at) : NOTHING);

const day = (at) => timeFormat({ year: 'numeric', month: '2-digit', day: '2-digit' }).format(at);

/// A date: short for an axis, or with its weekday and year.
export const date = (at, long = false) => timeFormat(long ? { year: 'numeric', month: 'short', day: 'numeric', weekday: 'short' } : { month: 'short', day: 'numeric' }).format(at);

/// A time of day; with its date unless it is today.
export function moment(at, now) {
    if (!known(at)) return NOTHING;
    if (day(at) === day(now)) return timeFormat({ hour: '2-digit', minute: '2-digit' }).format(at);
    const year = (of) => timeFormat({ year: 'numeric' }).format(of);
    return timeFormat({ ...(year(at) === year(now) ? {} : { year: 'numeric' }), month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' }).format(at);
}

/// A range of time, with the date of each end that is on another day than the one before; null for an end that is open.
export function span(from, until, now) {
    const year = (of) => timeFormat({ year: 'numeric' }).format(of);
    const time = (at) => timeFormat({ hour: '2-digit', minute: '2-digit' }).format(at);
    const dated = (at) => timeFormat({ ...(year(at) === year(now) ? {} : { year: 'numeric' }), month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' }).format(at);
    return [from === null ? null : dated(from), until === null ? null : from !== null && day(from) === day(until) ? time(until) : dated(until)];
}

/// Date and time to the second.
export const instant = (at) =>
    known(at)
        ? timeFormat({ year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit' }).format(at)
        : NOTHING;

/// Local wall-clock ISO without a zone, the format of the operators' API.
export function localIso(at) {
    const parts = new Intl.DateTimeFormat('en-CA', {
        timeZone: zone, hourCycle: 'h23', year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit',
    }).formatToParts(at);
    const of = (type) => parts.find((part) => part.type === type).value;
    return `${of('year')}-${of('month')}-${of('day')}T${of('hour')}:${of('minute')}:${of('second')}`;
}

/// The instant of a local ISO time; of one that the zone skips, an instant beside the gap.
export function fromIso(text) {
    const utc = Date.parse(`${text}Z`);
    let at = utc;
    // The zone's difference at the first guess may be that of another season.
    for (let guess = 0; guess < 2; guess += 1) at = utc - (Date.parse(`${localIso(at)}Z`) - at);
    return at;
}

/// The API's local ISO in a readable form.
export function readIso(text) {
    const match = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d)(?::(\d\d))?/.exec(text);
    if (!match) return text;
    const [, year, month, date, hour, minute, second = '00'] = match;
    return `${year}-${month}-${date} ${hour}:${minute}:${second}`;
}

/// The name of an error code in the page's language.
export const refusal = (code) => (has(`refusal.${code}`) ? t(`refusal.${code}`) : code);
