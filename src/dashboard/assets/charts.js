// The last fifteen minutes: the histories that the page keeps, the charts (uPlot) and the sparklines.

import { updateAttribute, h, updateText, svg } from './dom.js';
import { clock, ms, rate, short, t } from './i18n.js';

/// Seconds that the charts show, and the maximum of points in a history.
export const WINDOW_S = 900;
/// Seconds between two points beyond which a line has a gap. The past that the service sends ends about ten seconds ago.
const GAP_S = 12;
/// A point of the past is left out if the page itself has one within so many seconds.
const NEAR_S = 2;
const STORAGE_KEY = 'firstcome.history';

const FIELDS = ['answered', 'refused', 'limited', 'shed', 'failed', 'p50', 'p95', 'p99', 'perSecond', 'issued', 'paid', 'lag'];

/// A value for the logarithmic scale, which has no zero.
const positive = (ms) => (ms === undefined || ms === null ? undefined : Math.max(0.01, ms));

/// The values of requests.
const requestValues = (requests) => ({
    perSecond: requests?.perSecond,
    answered: requests && Math.max(0, requests.perSecond - requests.refusedPerSecond - requests.limitedPerSecond - requests.shedPerSecond - requests.failedPerSecond),
    refused: requests?.refusedPerSecond, limited: requests?.limitedPerSecond, shed: requests?.shedPerSecond, failed: requests?.failedPerSecond,
    p50: positive(requests?.latency?.p50Ms), p95: positive(requests?.latency?.p95Ms), p99: positive(requests?.latency?.p99Ms),
});

/// The points of the past in columns, as the service sends them.
const pointsOf = ({ at, p50Ms, p95Ms, p99Ms, ...rates }) => at.map((ms, place) => ({
    at: Math.round(ms / 1000),
    ...requestValues({
        ...Object.fromEntries(Object.entries(rates).map(([name, column]) => [name, column[place]])),
        latency: { p50Ms: p50Ms[place], p95Ms: p95Ms[place], p99Ms: p99Ms[place] },
    }),
}));

/// Columns of values: `at` in seconds, one per field; and the coupons left of each campaign.
class History {
    constructor() {
        this.clear();
    }

    clear() {
        this.at = [];
        for (const field of FIELDS) this[field] = [];
        this.left = new Map();
    }

    /// Adds the values of a second, later than all others.
    add(at, values) {
        const last = this.at.at(-1);
        // The server's clock was set back: the history is obsolete.
        if (last !== undefined && at < last - GAP_S) this.clear();
        this.#append(at, values);
    }

    /// Adds points of the past where the page has none.
    merge(points) {
        const own = this.at.map((at, place) => ({ at, ...Object.fromEntries(FIELDS.map((field) => [field, this[field][place]])) }))
            .filter(({ perSecond, paid }) => perSecond !== null || paid !== null);
        const near = new Set(own.filter(({ perSecond }) => perSecond !== null).flatMap(({ at }) => Array.from({ length: 2 * NEAR_S + 1 }, (_, n) => at + n - NEAR_S)));
        const all = [...own, ...points.filter(({ at }) => !near.has(at))].sort((a, b) => a.at - b.at);
        this.at = [];
        for (const field of FIELDS) this[field] = [];
        for (const { at, ...values } of all) this.#append(at, values);
    }

    #append(at, values) {
        const last = this.at.at(-1);
        if (last !== undefined && at <= last) return;
        if (last !== undefined && at - last > GAP_S) this.#push(last + 1, {});
        this.#push(at, values);
    }

    /// Drops what is older than the window before this second.
    drop(now) {
        while (this.at[0] < now - WINDOW_S) {
            this.at.shift();
            for (const field of FIELDS) this[field].shift();
        }
    }

    #push(at, values) {
        this.at.push(at);
        for (const field of FIELDS) this[field].push(values[field] ?? null);
        this.drop(at);
    }

    addCampaigns(at, campaigns) {
        for (const { couponId, remainingQuantity } of campaigns) {
            if (!this.left.has(couponId)) this.left.set(couponId, []);
            this.left.get(couponId).push([at, remainingQuantity]);
        }
        for (const [id, line] of this.left) {
            while (line.length > 0 && line[0][0] < at - WINDOW_S) line.shift();
            if (line.length === 0) this.left.delete(id);
        }
    }

    /// Stores the history in the tab, so that it survives a reload.
    save() {
        try {
            const columns = Object.fromEntries(['at', ...FIELDS].map((field) => [field, this[field]]));
            sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ columns, left: [...this.left] }));
        } catch { /* No storage: a reload loses the history. */ }
    }

    /// Loads the history that `save` stored.
    load() {
        try {
            const { columns, left } = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? 'null') ?? {};
            if (!['at', ...FIELDS].every((field) => Array.isArray(columns?.[field]) && columns[field].length === columns.at.length)) return;
            Object.assign(this, columns);
            this.left = new Map(left);
        } catch {
            this.clear();
        }
    }

    /// Clears the history, also in the tab.
    forget() {
        this.clear();
        try {
            sessionStorage.removeItem(STORAGE_KEY);
        } catch { /* No storage. */ }
    }
}

/// The history of all instances together.
export const history = new History();
/// The instances of the last fifteen minutes by key, each with its own history.
const instances = new Map();
/// The history that the charts show, and whether it goes on.
let shown = history;
let goesOn = true;

/// The key of an instance. Those of earlier versions have no id.
export const instanceKey = ({ instanceId, name, startedAt }) => instanceId || `${name} ${startedAt}`;

function instanceOf(it) {
    const key = instanceKey(it);
    if (!instances.has(key)) instances.set(key, { instanceId: it.instanceId, name: it.name, version: it.version, startedAt: it.startedAt, history: new History() });
    return instances.get(key);
}

/// Adds a snapshot to the histories.
export function addSnapshot(snapshot) {
    const at = Math.round(snapshot.at / 1000);
    const issuing = snapshot.campaigns?.map((campaign) => campaign.issuesPerSecond ?? 0);
    history.add(at, {
        ...requestValues(snapshot.requests),
        issued: issuing?.reduce((sum, each) => sum + each, 0), paid: snapshot.orders?.PAID, lag: snapshot.projection?.lagSeconds,
    });
    history.addCampaigns(at, snapshot.campaigns ?? []);
    for (const it of snapshot.instances ?? []) instanceOf(it).history.add(at, requestValues(it.requests));
    for (const [key, instance] of instances) {
        instance.history.drop(at);
        if (instance.history.at.length === 0) instances.delete(key);
    }
}

/// Adds the last fifteen minutes, as the service sends them when the page connects.
export function addPast(past) {
    history.merge(pointsOf(past.all));
    for (const it of past.instances) instanceOf(it).history.merge(pointsOf(it.requests));
}

/// The instances of the last fifteen minutes that are not among these: each with the second of its last requests.
export function endedInstances(running) {
    const keys = new Set(running.map(instanceKey));
    return [...instances].filter(([key]) => !keys.has(key)).map(([, instance]) => ({ ...instance, endedAt: instance.history.at.at(-1) }));
}

/// Makes the charts show one instance alone, which may have ended; without a key, all.
export function showInstance(key, ended = false) {
    shown = instances.get(key)?.history ?? history;
    goesOn = !ended;
}

/// Clears every history, also in the tab.
export function forgetHistories() {
    history.forget();
    instances.clear();
    showInstance('');
}

/// The second of the last snapshot.
const latest = () => history.at.at(-1) ?? 0;

const max = (values) => values.reduce((high, value) => (value !== null && value > high ? value : high), 0);

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

    /// Redraws the chart after a change of theme, language or text size.
    restyle() {
        this.#plot?.destroy();
        this.#plot = null;
        this.draw();
    }

    #create() {
        // The colours of the page's theme, from the legend.
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
                x: { time: true, range: () => { const now = latest(); return [now - WINDOW_S, now]; } },
                y: this.#scale,
            },
            axes: [
                { ...axis, grid: { show: false }, size: em * 1.5, gap: em * 0.25, incrs: [60, 120, 300], values: (_, at) => at.map((second) => clock(second * 1000).slice(0, 5)) },
                { ...axis, size: em * 3.25, gap: em * 0.4, space: em * 1.75, ...(this.#scale === LOGARITHMIC ? { splits: powersOfTen, filter: (_, splits) => splits } : {}), values: (_, values) => values.map((value) => this.#mark(value)) },
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
        return [shown.at, ...this.#fields.map((field) => shown[field])];
    }

    // The values under the cursor; without a cursor, the current ones.
    #values() {
        for (const field of this.#fields) {
            updateText(this.#keys.get(field).value, this.#format(this.#at === null ? now(field) : shown[field][this.#at]));
        }
    }

    draw() {
        if (this.#box.clientWidth === 0 || this.#box.clientHeight === 0) return;
        if (this.#plot) this.#plot.setData(this.#data());
        else this.#plot = this.#create();
        this.#values();
        updateAttribute(this.#box, 'aria-label', this.#describe());
    }
}

/// A logarithmic scale between powers of ten, at least from 1 to 10.
const LOGARITHMIC = {
    distr: 3,
    range: (_, low, high) => [low > 0 ? 10 ** Math.min(0, Math.floor(Math.log10(low))) : 1, high > 0 ? 10 ** Math.max(1, Math.ceil(Math.log10(high))) : 10],
};
const powersOfTen = (_, __, low, high) => {
    const [from, to] = [low, high].map((value) => Math.round(Math.log10(value)));
    return Array.from({ length: to - from + 1 }, (_, place) => 10 ** (from + place));
};

/// The current value; null of an instance that has ended.
const now = (field) => (goesOn ? shown[field].at(-1) : null);
let charts = [];

export function createCharts(requestsBox, latencyBox) {
    charts = [
        new Chart(requestsBox, ['answered', 'refused', 'limited', 'shed', 'failed'], {
            format: rate,
            mark: short,
            fill: 'answered',
            scale: { range: (_, __, high) => [0, Math.max(5, high * 1.1)] },
            describe: () => shown.at.length === 0 ? t('chart.requests.none') : t('chart.requests', {
                answered: rate(now('answered')), refused: rate(now('refused')), failed: rate(now('failed')), most: rate(max(shown.perSecond)),
            }),
        }),
        new Chart(latencyBox, ['p50', 'p95', 'p99'], {
            format: ms,
            mark: ms,
            fill: 'p50',
            // Logarithmic: one slow second leaves the other values readable.
            scale: LOGARITHMIC,
            describe: () => shown.at.length === 0 ? t('chart.latency.none') : t('chart.latency', {
                p50: ms(now('p50')), p95: ms(now('p95')), p99: ms(now('p99')), most: ms(max(shown.p99)),
            }),
        }),
    ];
}

export const drawCharts = () => charts.forEach((chart) => chart.draw());
export const restyleCharts = () => charts.forEach((chart) => chart.restyle());

// --- sparklines -------------------------------------------------------------------------------------

const WIDE = 300;
const HIGH = 60;

/// Minimum width of a sparkline, in seconds: a short history uses its whole width.
const MIN_WINDOW_S = 45;

/// Draws a line of `[second, value]` up to `end`, from `low` to `high`, into `box`.
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
    const wide = Math.max(MIN_WINDOW_S, end - known[0][0]);
    const x = (second) => WIDE - ((end - second) / wide) * WIDE;
    const y = (value) => HIGH - 2 - ((Math.min(value, high) - low) / (high - low || 1)) * (HIGH - 4);
    const path = known.map(([second, value], place) => `${place === 0 ? 'M' : 'L'}${x(second).toFixed(1)} ${y(value).toFixed(1)}`).join('');
    stroke.setAttribute('d', path);
    area.setAttribute('d', `${path}L${x(known.at(-1)[0]).toFixed(1)} ${HIGH}L${x(known[0][0]).toFixed(1)} ${HIGH}Z`);
}

/// Draws the sparkline of a field, from zero to its maximum; a total starts at its first value.
export function trace(box, field) {
    const column = history[field];
    const low = field === 'paid' ? column.find((value) => value !== null) ?? 0 : 0;
    line(box, column.map((value, place) => [history.at[place], value]), history.at.at(-1), low, Math.max(max(column), low + 1));
}
