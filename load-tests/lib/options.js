// The settings of a run: environment variables, each with a default and bounds. What a scenario asked for is remembered, for
// the report.

export const knobs = {};

/** The number in the environment variable `name`. A value that can't be meant ends the run before it begins. */
export function knob(name, fallback, { least = 0, most = Number.MAX_SAFE_INTEGER, whole = true } = {}) {
    const text = __ENV[name];
    const value = text === undefined || text === '' ? fallback : Number(text);
    if (!(value >= least && value <= most) || (whole && !Number.isInteger(value))) {
        throw new Error(`${name}=${text} is not a${whole ? ' whole' : ''} number from ${least} to ${most}`);
    }
    knobs[name] = value;
    return value;
}

/** The seconds in the environment variable `name`: `90`, `90s`, `15m`, `8h`, `1h30m`. */
export function seconds(name, fallback) {
    const text = __ENV[name] || `${fallback}s`;
    const parts = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?$/.exec(text);
    const value = parts ? (parts[1] || 0) * 3600 + (parts[2] || 0) * 60 + Number(parts[3] || 0) : 0;
    if (value < 1) throw new Error(`${name}=${text} is not a duration like 90s, 15m or 8h`);
    knobs[name] = `${value} s`;
    return value;
}

/** A share, 0 to 1. */
export const share = (name, fallback) => knob(name, fallback, { most: 1, whole: false });
