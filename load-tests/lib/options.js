// The options of a run: environment variables, each with a default and bounds. `chosen` has the values, for the report.

export const chosen = {};

/** The number in the environment variable `name`. A value out of bounds ends the run before it begins. */
export function option(name, fallback, { min = 0, max = Number.MAX_SAFE_INTEGER, integer = true } = {}) {
    const text = __ENV[name];
    const value = text === undefined || text === '' ? fallback : Number(text);
    if (!(value >= min && value <= max) || (integer && !Number.isInteger(value))) {
        throw new Error(`${name}=${text} is not a${integer ? ' whole' : ''} number from ${min} to ${max}`);
    }
    chosen[name] = value;
    return value;
}

/** The duration, in seconds, in the environment variable `name`: `90`, `90s`, `15m`, `8h`, `1h30m`. */
export function duration(name, fallback) {
    const text = __ENV[name] || `${fallback}s`;
    const parts = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?$/.exec(text);
    const value = parts ? (parts[1] || 0) * 3600 + (parts[2] || 0) * 60 + Number(parts[3] || 0) : 0;
    if (value < 1) throw new Error(`${name}=${text} is not a duration like 90s, 15m or 8h`);
    chosen[name] = `${value} s`;
    return value;
}

/** The share, 0 to 1, in the environment variable `name`. */
export const share = (name, fallback) => option(name, fallback, { max: 1, integer: false });
