// useLLMStream: a stream of flask-llmstream as the state of a React component. React 18 and 19.
// The types and all options: llmstream-react.d.ts. Licence: MIT.
//
// Decisions
//   1. A stream begins in a microtask: StrictMode leaves a component and comes back to it in one go, and
//      what was begun in between would be asked for twice.
//   2. React hears of what came once in an animation frame, and of the end at once.
//   3. The core changes its JSON in place; what React sees is a copy, made once in a frame.

import { useEffect, useInsertionEffect, useMemo, useState, useSyncExternalStore } from "react";
import { stream } from "./llmstream.js";

/** @typedef {import("./llmstream-react.js").LLMStreamState} State */
/** @typedef {import("./llmstream-react.js").UseLLMStreamOptions} Options */

/** @type {State} */
const IDLE = Object.freeze({
  status: "idle", busy: false, text: "", reasoning: "", json: undefined, usage: null, reason: null,
  channels: Object.freeze({}), error: null, url: null,
});

const nextFrame = globalThis.requestAnimationFrame ?? ((show) => setTimeout(show, 16));
const dropFrame = globalThis.cancelAnimationFrame ?? clearTimeout;

/** What one component has of its streams: one at a time. */
class Session {
  url = "";
  /** @type {Options} */
  options = {};

  #state = IDLE;
  #shown = new Set();
  /** @type {Call | null} the latest, until it is over */
  #call = null;
  #frame = 0;

  /** @param {() => void} show */
  subscribe = (show) => {
    this.#shown.add(show);
    return () => this.#shown.delete(show);
  };

  read = () => this.#state;

  /** @param {any} [body] @param {Options} [more] @returns {Promise<State>} */
  start = async (body, more) => {
    this.leave();
    const call = (this.#call = new Call());
    this.#show({ ...IDLE, status: "connecting", busy: true });
    await undefined;
    if (this.#call !== call) return { ...IDLE, status: "aborted" };
    const { immediate, onDelta, onEnd, onStatus, ...options } = { ...this.options, ...more };
    // <button onClick={start}> means no body.
    if (body !== undefined && !body?.nativeEvent) options.body = body;
    try {
      const run = (call.run = stream(this.url, {
        ...options,
        onStatus: (status, detail) => {
          this.#changed(call);
          onStatus?.(status, detail);
        },
      }));
      for await (const delta of run) {
        call.take(delta);
        this.#changed(call);
        onDelta?.(delta);
      }
    } catch (error) {
      if (call.run?.status !== "aborted") call.error = error;
    }
    const state = call.state;
    if (this.#call === call) {
      this.#call = null;
      this.#show(state);
    }
    onEnd?.(state);
    return state;
  };

  stop = async () => {
    const run = this.#call?.run;
    if (run) return run.stop();
    this.leave();
    return false;
  };

  reset = () => {
    this.leave();
    this.#show(IDLE);
  };

  /** Reads no more. */
  leave() {
    const call = this.#call;
    if (!call) return;
    this.#call = null;
    call.run?.abort();
    this.#show(call.state);
  }

  /** @param {Call} call */
  #changed(call) {
    if (this.#call !== call) return;
    this.#frame ||= nextFrame(() => {
      this.#frame = 0;
      if (this.#call) this.#show(this.#call.state);
    });
  }

  /** @param {State} state */
  #show(state) {
    dropFrame(this.#frame);
    this.#frame = 0;
    this.#state = state;
    for (const show of this.#shown) show();
  }
}

/** One start(). */
class Call {
  /** @type {import("./llmstream.js").Run | null} */
  run = null;
  /** @type {any} */
  error = null;
  #reasoning = "";
  #outdated = false;
  /** @type {any} */
  #json;
  /** @type {State["channels"]} */
  #channels = {};

  /** @param {import("./llmstream.js").Delta} delta */
  take(delta) {
    if ("channel" in delta || delta.type === "json") this.#outdated = true;
    else if (delta.type === "reasoning") this.#reasoning += delta.text;
  }

  /** @returns {State} as it is now */
  get state() {
    const { run, error } = this;
    if (!run) return { ...IDLE, status: error ? "failed" : "aborted", error };
    if (this.#outdated) {
      this.#outdated = false;
      this.#json = structuredClone(run.value);
      this.#channels = Object.fromEntries(Object.entries(run.channels).map(
        ([name, { value, ...rest }]) => [name, { ...rest, json: structuredClone(value) }],
      ));
    }
    const { text, usage, reason, url } = run;
    const status = error ? "failed" : run.status;
    const busy = ["connecting", "streaming", "reconnecting"].includes(status);
    return {
      status, busy, text, reasoning: this.#reasoning, json: this.#json, usage, reason,
      channels: this.#channels, error, url,
    };
  }
}

const idle = () => IDLE;

/** @type {typeof import("./llmstream-react.js").useLLMStream} */
export function useLLMStream(url, options = {}) {
  const [session] = useState(() => new Session());
  // Before any effect that may start it.
  useInsertionEffect(() => {
    session.url = String(url);
    session.options = options;
  });
  useEffect(() => () => session.leave(), [session]);
  const { immediate } = options;
  useEffect(() => {
    if (immediate) session.start();
  }, [session, immediate, String(url)]);
  const state = useSyncExternalStore(session.subscribe, session.read, idle);
  return useMemo(() => {
    const { start, stop, reset } = session;
    return /** @type {any} */ ({ ...state, start, stop, reset });
  }, [session, state]);
}
