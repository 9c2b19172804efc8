// The live feed: connects, reconnects by itself, and says how it stands.

import { session } from './api.js';

/// Without a snapshot for so long, a connection that seems open is given up for a new one.
const SILENCE_MS = 8_000;
const LONGEST_PAUSE_MS = 5_000;

/// Calls `onSnapshot(snapshot)` once a second, `onState('connecting' | 'live' | 'lost')` on every change, and `onExpired()` where the
/// session has ended.
export class Feed {
    #source = null;
    #watchdog = 0;
    #again = 0;
    #pause = 500;
    #handlers;

    constructor(handlers) {
        this.#handlers = handlers;
        // A laptop that wakes up, a network that comes back: at once rather than at the next turn.
        addEventListener('online', () => this.#source === null && this.#again !== 0 && this.start());
    }

    start() {
        this.stop();
        this.#handlers.onState('connecting');
        this.#connect();
    }

    stop() {
        clearTimeout(this.#watchdog);
        clearTimeout(this.#again);
        this.#again = 0;
        this.#source?.close();
        this.#source = null;
    }

    #connect() {
        const source = new EventSource('/ops/feed');
        this.#source = source;
        this.#watch();
        source.addEventListener('snapshot', (event) => {
            if (source !== this.#source) return;
            let snapshot;
            try {
                snapshot = JSON.parse(event.data);
            } catch {
                return;
            }
            this.#pause = 500;
            this.#watch();
            this.#handlers.onState('live');
            this.#handlers.onSnapshot(snapshot);
        });
        source.addEventListener('error', () => {
            if (source === this.#source) this.#lost();
        });
    }

    #watch() {
        clearTimeout(this.#watchdog);
        this.#watchdog = setTimeout(() => this.#lost(), SILENCE_MS);
    }

    // The browser would reconnect by itself in some cases and not in others, and never says why: so it is always done here.
    async #lost() {
        this.stop();
        this.#handlers.onState('lost');
        this.#again = setTimeout(() => {}, 0);
        const turn = this.#again;
        let who;
        try {
            who = await session.read();
        } catch {
            who = undefined;
        }
        if (this.#again !== turn) return;
        if (who === null) {
            this.stop();
            this.#handlers.onExpired();
            return;
        }
        this.#again = setTimeout(() => this.#connect(), this.#pause);
        this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_MS);
    }
}
