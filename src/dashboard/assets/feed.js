// The live feed: connects, reconnects, and reports its state.

import { session } from './api.js';

/// Milliseconds without a snapshot after which the feed reconnects, even if the connection seems open.
const SNAPSHOT_TIMEOUT_MS = 8_000;
const MAX_PAUSE_MS = 5_000;

/// Calls `onHistory(past)` after each connection, as soon as the past is known, `onSnapshot(snapshot)` once a second, `onState('connecting' | 'live' | 'lost')` on every change, and `onExpired()` when the
/// session has ended.
export class Feed {
    #source = null;
    #watchdog = 0;
    #retry = 0;
    #pause = 500;
    #handlers;

    constructor(handlers) {
        this.#handlers = handlers;
        // After a network change, reconnect at once instead of at the next attempt.
        addEventListener('online', () => this.#source === null && this.#retry !== 0 && this.start());
    }

    start() {
        this.stop();
        this.#handlers.onState('connecting');
        this.#connect();
    }

    stop() {
        clearTimeout(this.#watchdog);
        clearTimeout(this.#retry);
        this.#retry = 0;
        this.#source?.close();
        this.#source = null;
    }

    #connect() {
        const source = new EventSource('/ops/feed');
        this.#source = source;
        this.#watch();
        this.#on(source, 'history', (past) => this.#handlers.onHistory(past));
        this.#on(source, 'snapshot', (snapshot) => {
            this.#pause = 500;
            this.#watch();
            this.#handlers.onState('live');
            this.#handlers.onSnapshot(snapshot);
        });
        source.addEventListener('error', () => {
            if (source === this.#source) this.#lost();
        });
    }

    #on(source, name, handle) {
        source.addEventListener(name, (event) => {
            if (source !== this.#source) return;
            let data;
            try {
                data = JSON.parse(event.data);
            } catch {
                return;
            }
            handle(data);
        });
    }

    #watch() {
        clearTimeout(this.#watchdog);
        this.#watchdog = setTimeout(() => this.#lost(), SNAPSHOT_TIMEOUT_MS);
    }

    // EventSource reconnects in some cases only, and reports no reason. So this class always reconnects itself.
    async #lost() {
        this.stop();
        this.#handlers.onState('lost');
        this.#retry = setTimeout(() => {}, 0);
        const turn = this.#retry;
        let current;
        try {
            current = await session.read();
        } catch {
            current = undefined;
        }
        if (this.#retry !== turn) return;
        if (current === null) {
            this.stop();
            this.#handlers.onExpired();
            return;
        }
        this.#retry = setTimeout(() => this.#connect(), this.#pause);
        this.#pause = Math.min(this.#pause * 2, MAX_PAUSE_MS);
    }
}
