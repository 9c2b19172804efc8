// What the last five minutes looked like: the history that the page keeps, the charts (uPlot) and the small lines.

import { attribute, h, say, svg } from './dom.js';
import { clock, ms, rate, short, t } from './i18n.js';

/// Seconds that the charts show, and so the most points that are kept.
export const WINDOW_S = 300;
/// Between two points further apart than this nothing was heard: the line is broken there.
const GAP_S = 5;
const KEPT = 'firstcome.history';

const FIELDS = ['answered', 'refused', 'limited', 'shed', 'failed', 'p50', 'p95', 'p99', 'perSecond', 'issued', 'paid', 'lag'];

/// A scale by tens has no zero.
const drawable = (ms) => (ms === undefined ? undefined : Math.max(0.01, ms));

/// `at` in seconds and a column for each field; and what was left of each campaign.
class History {
    constructor() {
        this.clear();
    }

    clear() {
        this.at = [];
        for (const field of FIELDS) this[field] = [];
        this.left = new Map();
    }

    add(snapshot) {
        const at = Math.round(snapshot.at / 1000);
        const last = this.at.at(-1);
        // A server's clock that was set back: what was is of another time.
        if (last !== undefined && at < last - GAP_S) this.clear();
        if (last !== undefined && at <= last) return;
        if (last !== undefined && at - last > GAP_S) this.#push(last + 1, {});
        const requests = snapshot.requests;
        const issuing = snapshot.campaigns?.map((campaign) => campaign.issuesPerSecond ?? 0);
        this.#push(at, {
            perSecond: requests?.perSecond,
            answered: requests && Math.max(0, requests.perSecond - requests.refusedPerSecond - requests.limitedPerSecond - requests.shedPerSecond - requests.failedPerSecond),
            refused: requests?.refusedPerSecond, limited: requests?.limitedPerSecond, shed: requests?.shedPerSecond, failed: requests?.failedPerSecond,
            p50: drawable(requests?.latency?.p50Ms), p95: drawable(requests?.latency?.p95Ms), p99: drawable(requests?.latency?.p99Ms),
            issued: issuing?.reduce((sum, each) => sum + each, 0), paid: snapshot.orders?.PAID, lag: snapshot.projection?.lagSeconds,
        });
        this.#remember(at, snapshot.campaigns ?? []);
    }

    #push(at, values) {
        this.at.push(at);
        for (const field of FIELDS) this[field].push(values[field] ?? null);
        while (this.at[0] < at - WINDOW_S) {
            this.at.shift();
            for (const field of FIELDS) this[field].shift();
        }
    }

    #remember(at, campaigns) {
        for (const { couponId, remainingQuantity } of campaigns) {
            if (!this.left.has(couponId)) this.left.set(couponId, []);
            this.left.get(couponId).push([at, remainingQuantity]);
        }
        for (const [id, line] of this.left) {
            while (line.length > 0 && line[0][0] < at - WINDOW_S) line.shift();
            if (line.length === 0) this.left.delete(id);
        }
    }

    /// Survives a reload of the page in this tab.
    keep() {
        try {
            const columns = Object.fromEntries(['at', ...FIELDS].map((field) => [field, this[field]]));
            sessionStorage.setItem(KEPT, JSON.stringify({ columns, left: [...this.left] }));
        } catch { /* Then it does not. */ }
    }

    recall() {
        try {
            const { columns, left } = JSON.parse(sessionStorage.getItem(KEPT) ?? 'null') ?? {};
            if (!['at', ...FIELDS].every((field) => Array.isArray(columns?.[field]) && columns[field].length === columns.at.length)) return;
            Object.assign(this, columns);
            this.left = new Map(left);
        } catch {
            this.clear();
        }
    }

    forget() {
        this.clear();
        try {
            sessionStorage.removeItem(KEPT);
        } catch { /* Nothing was kept. */ }
    }
}

export const history = new History();

const most = (values) => values.reduce((high, value) => (value !== null && value > high ? value : high), 0);

// --- the large charts -----------------------------------------------------------------------------

const DASHES = { refused: [6, 3], limited: [2, 3], shed: [8, 3, 2, 3], failed: [], p50: [], p95: [6, 3], p99: [2, 3] };

class Chart {
    #plot = null;
    #fields;
    #format;
    #mark;
    #describe;
    #fill;
    #scale;
    #box;
    #legend;
    #keys = new Map();
    #at = null;

    constructor(box, fields, { format, mark, describe, fill, scale }) {
        this.#box = box;
        this.#fields = fields;
        this.#format = format;
        this.#mark = mark;
        this.#describe = describe;
        this.#fill = fill;
        this.#scale = scale;
        this.#legend = box.closest('figure').querySelector('.legend');
        for (const field of fields) {
            const key = h('i', { class: `key series-${field}`, 'aria-hidden': 'true' });
            const name = h('span', { 'data-t': `series.${field}` });
            const value = h('b', { text: '–' });
            this.#legend.append(h('li', {}, key, name, value));
            this.#keys.set(field, { key, value });
        }
        new ResizeObserver(() => this.#resize()).observe(box);
    }

    #resize() {
        if (this.#plot && this.#box.clientWidth > 0) this.#plot.setSize(this.#size());
        else this.draw();
    }

    #size() {
        return { width: this.#box.clientWidth, height: this.#box.clientHeight };
    }

    /// Again from the beginning: the theme, the language or the size of the text has changed.
    restyle() {
        this.#plot?.destroy();
        this.#plot = null;
        this.draw();
    }

    #make() {
        // The colours of the page's theme, as its own keys have them.
        const colour = (field) => getComputedStyle(this.#keys.get(field).key).color;
        const ink = getComputedStyle(this.#legend).color;
        const grid = getComputedStyle(this.#box).borderTopColor;
        const em = parseFloat(getComputedStyle(document.documentElement).fontSize);
        const font = `${Math.round(em * 0.6875)}px ${getComputedStyle(document.body).fontFamily}`;
        const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
        return new uPlot({
            ...this.#size(),
            padding: [em * 0.5, em, 0, 0],
            legend: { show: false },
            cursor: { points: { size: em * 0.5 }, drag: { x: false, y: false }, y: false },
            scales: {
                x: { time: true, range: () => { const now = history.at.at(-1) ?? 0; return [now - WINDOW_S, now]; } },
                y: this.#scale,
            },
            axes: [
                { ...axis, grid: { show: false }, size: em * 1.5, gap: em * 0.25, incrs: [60], values: (_, at) => at.map((second) => clock(second * 1000).slice(0, 5)) },
                { ...axis, size: em * 3.25, gap: em * 0.4, space: em * 1.75, ...(this.#scale === BY_TENS ? { splits: powersOfTen, filter: (_, splits) => splits } : {}), values: (_, values) => values.map((value) => this.#mark(value)) },
            ],
            series: [
                {},
                ...this.#fields.map((field) => ({
                    stroke: colour(field), width: 1.75, dash: DASHES[field] ?? [], points: { show: false },
                    fill: field === this.#fill ? colour(field).replace(/rgba?\(([^,)]+,[^,)]+,[^,)]+).*/, 'rgba($1, 0.12)') : undefined,
                })),
            ],
            hooks: { setCursor: [(plot) => { this.#at = plot.cursor.idx ?? null; this.#values(); }] },
        }, this.#data(), this.#box);
    }

    #data() {
        return [history.at, ...this.#fields.map((field) => history[field])];
    }

    // What is under the cursor; without one, what is now.
    #values() {
        for (const field of this.#fields) {
            const column = history[field];
            say(this.#keys.get(field).value, this.#format(this.#at === null ? column.at(-1) : column[this.#at]));
        }
    }

    draw() {
        if (this.#box.clientWidth === 0 || this.#box.clientHeight === 0) return;
        if (this.#plot) this.#plot.setData(this.#data());
        else this.#plot = this.#make();
        this.#values();
        attribute(this.#box, 'aria-label', this.#describe());
    }
}

/// A scale by tens, from the power of ten below the lowest to the one above the highest: at least one to ten.
const BY_TENS = {
    distr: 3,
    range: (_, low, high) => [low > 0 ? 10 ** Math.min(0, Math.floor(Math.log10(low))) : 1, high > 0 ? 10 ** Math.max(1, Math.ceil(Math.log10(high))) : 10],
};
const powersOfTen = (_, __, low, high) => {
    const [from, to] = [low, high].map((value) => Math.round(Math.log10(value)));
    return Array.from({ length: to - from + 1 }, (_, place) => 10 ** (from + place));
};

const now = (field) => history[field].at(-1);
let charts = [];

export function makeCharts(requestsBox, latencyBox) {
    charts = [
        new Chart(requestsBox, ['answered', 'refused', 'limited', 'shed', 'failed'], {
            format: rate,
            mark: short,
            fill: 'answered',
            scale: { range: (_, __, high) => [0, Math.max(5, high * 1.1)] },
            describe: () => history.at.length === 0 ? t('chart.requests.none') : t('chart.requests', {
                answered: rate(now('answered')), refused: rate(now('refused')), failed: rate(now('failed')), most: rate(most(history.perSecond)),
            }),
        }),
        new Chart(latencyBox, ['p50', 'p95', 'p99'], {
            format: ms,
            mark: ms,
            fill: 'p50',
            // By tens: one slow second leaves the rest to be read.
            scale: BY_TENS,
            describe: () => history.at.length === 0 ? t('chart.latency.none') : t('chart.latency', {
                p50: ms(now('p50')), p95: ms(now('p95')), p99: ms(now('p99')), most: ms(most(history.p99)),
            }),
        }),
    ];
}

export const drawCharts = () => charts.forEach((chart) => chart.draw());
export const restyleCharts = () => charts.forEach((chart) => chart.restyle());

// --- the small lines --------------------------------------------------------------------------------

const WIDE = 300;
const HIGH = 60;

/// A young history is not squeezed into a corner of the window.
const LEAST_WINDOW_S = 45;

/// A line of `[second, value]` up to `end`, from `low` to `high`, into `box`.
export function line(box, points, end, low, high) {
    const known = points.filter(([, value]) => value !== null);
    if (!box.firstChild) {
        box.append(svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: 'none' }, svg('path', { class: 'area' }), svg('path', { class: 'stroke' })));
    }
    const [area, stroke] = box.firstChild.children;
    if (known.length < 2) {
        area.setAttribute('d', '');
        stroke.setAttribute('d', '');
        return;
    }
    const wide = Math.max(LEAST_WINDOW_S, end - known[0][0]);
    const x = (second) => WIDE - ((end - second) / wide) * WIDE;
    const y = (value) => HIGH - 2 - ((Math.min(value, high) - low) / (high - low || 1)) * (HIGH - 4);
    const path = known.map(([second, value], place) => `${place === 0 ? 'M' : 'L'}${x(second).toFixed(1)} ${y(value).toFixed(1)}`).join('');
    stroke.setAttribute('d', path);
    area.setAttribute('d', `${path}L${x(known.at(-1)[0]).toFixed(1)} ${HIGH}L${x(known[0][0]).toFixed(1)} ${HIGH}Z`);
}

/// The line of a column of the history, from zero to its own highest; of what only grows, from where it began.
export function trace(box, field) {
    const column = history[field];
    const low = field === 'paid' ? column.find((value) => value !== null) ?? 0 : 0;
    line(box, column.map((value, place) => [history.at[place], value]), history.at.at(-1), low, Math.max(most(column), low + 1));
}
