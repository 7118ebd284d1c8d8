// Reads streams of flask-llmstream. What all of it means: llmstream.d.ts
/** @typedef {typeof import("./llmstream.js")} Types */

const TYPES = {
  sse: "text/event-stream",
  ndjson: "application/x-ndjson",
  frames: "application/vnd.llmstream.frames",
  text: "text/plain",
};
const KINDS = ["comment", "text", "reasoning", "tool", "json", "usage", "custom", "event", "done", "failed"];
const NAMED = [...KINDS.slice(2, 7), "done", "failed"];
const TRANSIENT = [429, 500, 502, 503, 504];

export class StreamError extends Error {
  /** @param {ConstructorParameters<Types["StreamError"]>} args */
  constructor(...[message, code, retryable, more]) {
    super(message);
    Object.assign(this, { name: new.target.name, code, retryable }, more);
  }
}
export class StreamFailed extends StreamError {}
export class StreamInterrupted extends StreamError {}
export class StreamRefused extends StreamError {}
export class StreamAborted extends StreamError {}

const damaged = (what) => new StreamError(`the stream is damaged: ${what}`, "invalid_data", false);
const utf8 = (fatal = false) => new TextDecoder("utf-8", { ignoreBOM: true, fatal });

function lines(onLine) {
  const decoder = utf8();
  let held = "", begun = false, cr = false;
  return (piece) => {
    let text = typeof piece === "string" ? piece : decoder.decode(piece, { stream: true });
    if (!text) return;
    // A CR ends its line at once; the LF of a CRLF may follow.
    if ((!begun && text[0] === "\ufeff") || (cr && text[0] === "\n")) text = text.slice(1);
    begun = true;
    cr = text.endsWith("\r");
    const [first, ...rest] = text.split(/\r\n?|\n/);
    held += first;
    for (const line of rest) {
      onLine(held);
      held = line;
    }
  };
}

// As section 9.2.6 of the HTML standard has it.
export class SSEParser {
  #type = "";
  #data = [];
  #id;
  #handlers;

  /** @param {ConstructorParameters<Types["SSEParser"]>} args */
  constructor(...[handlers = {}]) {
    this.#handlers = handlers;
    this.lastEventId = handlers.lastEventId ?? "";
    this.end();
  }

  end() {
    this.#id = this.lastEventId;
    this.#type = "";
    this.#data = [];
    /** @type {(piece: string | Uint8Array) => void} */
    this.feed = lines((line) => this.#line(line));
  }

  #line(line) {
    const { onEvent, onRetry, onComment } = this.#handlers;
    if (!line) {
      const event = { type: this.#type || "message", data: this.#data.join("\n"), lastEventId: this.#id };
      const complete = this.#data.length;
      this.lastEventId = this.#id;
      this.#type = "";
      this.#data = [];
      if (complete) onEvent?.(event);
      return;
    }
    const [, field, value = ""] = line.match(/^([^:]*)(?:: ?([^]*))?$/) ?? [];
    if (line[0] === ":") onComment?.(value);
    else if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) onRetry?.(+value);
  }
}

function objectOf(text) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value) || typeof value !== "object" ? null : value;
  } catch {
    return null;
  }
}

function takeEvent(take, name, data, id) {
  const fields = objectOf(data);
  if (name === "message" && typeof fields?.text === "string") take("text", fields, id);
  else if (fields && NAMED.includes(name)) take(name, fields, id);
  else take("event", { channel: fields?.channel, event: name, data: fields ?? data }, id);
}

const READERS = {
  sse(take, lastEventId) {
    const onEvent = (event) => takeEvent(take, event.type, event.data, event.lastEventId);
    const onRetry = (retry) => take("", { retry });
    return new SSEParser({ lastEventId, onEvent, onRetry }).feed;
  },

  ndjson(take, cursor) {
    return lines((line) => {
      const item = objectOf(line);
      if (!item) throw damaged("a line is no object");
      const { type, cursor: next, ...fields } = item;
      take(type, fields, (cursor = next ?? cursor));
    });
  },

  frames(take, cursor) {
    const decoder = utf8(true);
    let pieces = [], names = [], size = 0, need = 6;
    return (bytes) => {
      pieces.push(bytes);
      size += bytes.length;
      if (size < need) return; // linear
      let all = new Uint8Array(size), at = 0;
      for (const piece of pieces) all.set(piece, (at += piece.length) - piece.length);
      while (all.length >= (need = 6)) {
        const head = new DataView(all.buffer, all.byteOffset);
        need += head.getUint32(0);
        if (need > 1 << 24) throw damaged(`a frame has ${need} bytes`);
        if (all.length < need) break;
        const number = head.getUint8(4), channel = head.getUint8(5), kind = KINDS[number] ?? "cursor";
        const payload = all.subarray(6, need);
        all = all.subarray(need);
        if (!number || number > 10) continue;
        let fields;
        try {
          const text = decoder.decode(payload);
          fields = number < 3 || number > 9 ? { text } : JSON.parse(text);
        } catch {
          throw damaged(`a frame is no ${kind}`);
        }
        if (channel) fields.channel = names[channel - 1];
        if (number > 9) cursor = fields.text;
        else if (fields.name === "channels" && kind === "custom") names = fields.data;
        else take(kind, fields, cursor);
      }
      pieces = [all];
      size = all.length;
    };
  },

  text(take) {
    const decoder = utf8();
    return (bytes) => { take("text", { text: decoder.decode(bytes, { stream: !!bytes }) }); };
  },
};

function step(inside, key) {
  // Not what objects inherit: in JSON "__proto__" is a name like any other.
  if (!inside || !Object.hasOwn(inside, key)) throw damaged(`there is no ${key}`);
  return inside[key];
}

/** @type {Types["applyDelta"]} */
export function applyDelta(root, { path, op, value }) {
  if (op === "complete") return root;
  const keys = path.split("/").slice(1).map((key) => key.replace(/~1/g, "/").replace(/~0/g, "~"));
  if (op === "append") value = keys.reduce(step, root) + value;
  const last = keys.pop();
  if (last === undefined) return value;
  const descriptor = { value, writable: true, enumerable: true, configurable: true };
  Object.defineProperty(keys.reduce(step, root), last, descriptor);
  return root;
}

async function read(body, take) {
  const reader = body.getReader(); // for await is not everywhere
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    if (take(value)) return reader.cancel();
  }
}

class Run {
  /** @type {any} */
  status = "idle";
  /** @type {any} */
  url = null;
  lastEventId = "";
  text = "";
  value = undefined;
  usage = null;
  reason = null;
  channels = Object.create(null);

  #options;
  #target;
  #request;
  #format;
  #started = false;
  #stopping = false;
  #delivered = false;
  #early = false;
  #attempt = 0;
  #retry = 1000;
  #over = new AbortController();
  #connection = new AbortController();
  #queue = [];
  #halves = new Map();
  #error;
  /** @type {any} */
  #wake;

  constructor(url, options) {
    const { body, eventSource, format, method: own } = options;
    const method = own?.toUpperCase() ?? (body == null ? "GET" : "POST");
    const headers = new Headers(options.headers);
    this.#options = options;
    this.#target = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
    this.#request = { method, body, headers };
    this.#format = format;
    if (format && !TYPES[format]) throw new TypeError(`format is ${format}, expected ${Object.keys(TYPES)}`);
    if (eventSource && (method !== "GET" || options.headers || format)) {
      throw new TypeError("an EventSource has a url and credentials, no more");
    }
    if (Array.isArray(body) || String(body) === "[object Object]") {
      this.#request.body = JSON.stringify(body);
      if (!headers.has("Content-Type")) headers.set("Content-Type", "application/json");
    }
  }

  async *[Symbol.asyncIterator]() {
    this.start();
    try {
      for (;;) {
        while (this.#queue.length) yield this.#queue.shift();
        if (this.#error) throw this.#error;
        if (this.#isOver) return;
        await new Promise((resolve) => { this.#wake = resolve; });
      }
    } finally {
      this.abort();
    }
  }

  get #isOver() {
    return this.#over.signal.aborted;
  }

  start() {
    if (this.#started) return this;
    this.#started = true;
    const { signal } = this.#options;
    if (signal?.aborted) this.abort(signal.reason);
    if (this.#isOver) return this;
    this.#on("abort", () => this.abort(signal.reason), signal);
    this.#on("pagehide", () => this.abort()); // or it would go on in the back-forward cache
    this.#say("connecting");
    if (this.#options.eventSource) this.#listen();
    else this.#run();
    return this;
  }

  async stop() {
    this.#stopping = true;
    // The URL comes with the head of the answer.
    for (let i = 0; i < 60 && this.status === "connecting"; i++) {
      await new Promise((resolve) => { setTimeout(resolve, 50); });
    }
    if (!this.url || this.#isOver) {
      this.#started = true;
      this.#take("done", { reason: "cancelled" });
      return false;
    }
    const { headers } = this.#request, { credentials } = this.#options;
    return fetch(this.url, { method: "DELETE", headers, credentials, keepalive: true }).then(
      (response) => response.ok, () => false,
    );
  }

  abort(cause) {
    this.#started = true;
    const error = new StreamAborted("the stream was aborted", "aborted", false, { name: "AbortError", cause });
    this.#finish("aborted", { error });
  }

  #say(status, detail = {}) {
    this.status = status;
    try {
      this.#options.onStatus?.(status, detail);
    } catch (error) {
      queueMicrotask(() => { throw error; }); // the page's mistake, for its console
    }
  }

  #finish(status, detail) {
    if (this.#isOver) return;
    this.#error = detail.error;
    this.#over.abort();
    // Who has said all may end the body: the connection can be used again.
    if (this.#error) this.#connection.abort();
    else setTimeout(() => this.#connection.abort(), 250);
    this.#say(status, detail);
    this.#wake?.();
  }

  #on(name, call, target = globalThis) {
    target?.addEventListener?.(name, call, this.#over);
  }

  #fail(error) {
    this.#finish("failed", { error });
  }

  #follow(url) {
    const found = url && new URL(url, this.#target);
    // It gets the same credentials, so it must be who they are meant for.
    this.url = found?.origin === this.#target.origin ? found.href : null;
  }

  #take = (type, fields, id) => {
    if (this.#isOver) return;
    const { channel, retry } = fields;
    this.lastEventId = id ?? this.lastEventId;
    this.#retry = retry ?? this.#retry;
    if (fields.event === "stream" && channel == null) return this.#follow(fields.data?.url);
    if (!KINDS.includes(type, 1)) return;
    this.#attempt = 0;
    this.#delivered = true;
    const state = channel == null ? this : (this.channels[channel] ??= { text: "", usage: null, reason: null });
    const delta = { ...fields, type };
    if (type === "text") {
      // Models cut characters in half.
      const text = (this.#halves.get(state) ?? "") + fields.text;
      const whole = text.replace(/[\ud800-\udbff]$/, "");
      this.#halves.set(state, text.slice(whole.length));
      if (!whole) return;
      state.text += delta.text = whole;
    }
    if (type === "json") state.value = applyDelta(state.value, fields);
    if (type === "usage") state.usage = fields;
    if (type === "done") {
      state.reason = fields.reason ?? null;
      state.usage = fields.usage ?? state.usage;
    }
    if (type === "failed" && state === this) {
      const { message = "the server gave no reason", code = "error", retryable } = fields;
      return this.#fail(new StreamFailed(message, code, retryable === true));
    }
    const { reason, usage } = this, end = type === "done" || type === "failed", whole = state === this;
    if (end) Object.assign(delta, whole ? { reason, usage } : { type: "channel", end: type });
    this.#queue.push(delta);
    this.#wake?.();
    if (!end || !whole) return;
    this.#finish(this.#stopping && reason === "cancelled" ? "stopped" : "done", { reason, usage });
  };

  #interrupted(what, code = "interrupted") {
    return new StreamInterrupted(`${this.#target.pathname} broke off: ${what}`, code, true);
  }

  get #repeatable() {
    const { resume = true, retries = 5 } = this.#options;
    // What has an id goes on behind it; all else would begin again.
    const safe = (this.url || this.#request.method === "GET") && (this.lastEventId || !this.#delivered);
    return resume && (safe || this.#early) && this.#attempt < retries;
  }

  async #run() {
    for (;;) {
      const thrown = await this.#connect().catch((error) => error);
      if (this.#isOver) return;
      const error = thrown instanceof StreamError ? thrown : this.#interrupted(thrown);
      const { status, code, retryAfter } = /** @type {any} */ (error);
      // A first refusal stands, unless it says until when.
      const passing = TRANSIENT.includes(status) && (this.url || this.lastEventId || retryAfter != null);
      if (!passing && code !== "interrupted" || retryAfter > 60 || !this.#repeatable) return this.#fail(error);
      const doubled = Math.min(this.#retry * 2 ** this.#attempt++, Math.max(this.#retry, 30000));
      const delay = Math.max(doubled * (1 + Math.random() / 2) / 1000, retryAfter ?? 0);
      this.#say("reconnecting", { attempt: this.#attempt, delay, error });
      await new Promise((resolve) => {
        this.#on("online", resolve);
        this.#over.signal.onabort = resolve;
        setTimeout(resolve, delay * 1000);
      });
      if (this.#isOver) return;
    }
  }

  async #connect() {
    const { credentials, idleTimeout = 45, expectedEnd = true } = this.#options;
    const connection = this.#connection = new AbortController();
    this.#early = false;
    const headers = new Headers(this.#request.headers);
    if (this.#format || !headers.has("Accept")) headers.set("Accept", TYPES[this.#format ?? "sse"]);
    const id = new TextEncoder().encode(this.lastEventId); // a character for each byte
    if (id.length) headers.set("Last-Event-ID", String.fromCharCode(...id));
    let ticks = 0;
    // In parts: a page that was frozen has not waited.
    const watchdog = idleTimeout && setInterval(() => {
      if (++ticks > 4) connection.abort(this.#interrupted(`not a byte in ${idleTimeout} s`));
    }, idleTimeout * 250);
    try {
      const response = await fetch(this.url ?? this.#target, {
        ...(!this.url && this.#request), headers, credentials, cache: "no-store", signal: connection.signal,
      });
      if (response.status === 204) return this.#take("done", {}); // all was read
      const type = response.headers.get("Content-Type")?.split(";")[0].trim().toLowerCase();
      const known = type?.replace("/ndjson", "/x-ndjson"), wanted = this.#format;
      const format = Object.keys(TYPES).find((name) => TYPES[name] === known && name === (wanted ?? name));
      if (response.status !== 200 || !format) throw await this.#refusal(response, type);
      const location = response.headers.get("Content-Location");
      if (/\/streams\/[^/?#]+$/.test(location ?? "")) this.#follow(location);
      this.#format = format;
      this.#say("streaming");
      const feed = READERS[format](this.#take, this.lastEventId);
      await read(response.body, (piece) => {
        ticks = 0;
        if (!this.#isOver) feed(piece);
      });
      if (format === "text") feed();
      if (format === "text" || !expectedEnd) this.#take("done", {});
      throw "it ended without done or failed";
    } finally {
      clearInterval(watchdog);
      if (!this.#isOver) connection.abort();
    }
  }

  async #refusal(response, type) {
    const { status, headers } = response;
    if (this.url && (status === 404 || status === 410)) return this.#interrupted(`${status}, it is gone`, "lost");
    let body = "";
    const add = READERS.text((_, { text }) => { body += text; });
    await read(response.body, (piece) => add(piece) ?? body.length > 1023).catch(() => {});
    const after = headers.get("Retry-After");
    const seconds = /^\d+$/.test(after) ? +after : (Date.parse(after) - Date.now()) / 1000;
    this.#early = seconds >= 0 && !response.redirected && [429, 503].includes(status);
    const seen = status === 200 ? `with Content-Type ${type}, expected ${TYPES[this.#format ?? "sse"]}` : status;
    const more = { status, headers, body: body.slice(0, 1024), retryAfter: seconds >= 0 ? seconds : null };
    const message = `${this.#target.pathname} answered ${seen}`;
    return new StreamRefused(message, "refused", TRANSIENT.includes(status), more);
  }

  #listen() {
    const source = new EventSource(this.#target, { withCredentials: this.#options.credentials === "include" });
    this.#over.signal.onabort = () => source.close();
    for (const name of ["message", "stream", "resync", ...NAMED]) {
      source.addEventListener(name, (event) => {
        try {
          takeEvent(this.#take, name, event.data, event.lastEventId);
        } catch (error) {
          this.#fail(error);
        }
      });
    }
    source.onopen = () => this.#say("streaming");
    source.onerror = () => {
      if (source.readyState > 1 || !this.#repeatable) this.#fail(this.#interrupted("the EventSource"));
      else this.#say("reconnecting", { attempt: ++this.#attempt });
    };
  }
}

/** @type {Types["stream"]} */
export const stream = (url, options = {}) => new Run(url, options);

if (globalThis.document) {
  const load = () => document.querySelector("llm-stream") && import("./llmstream-element.js");
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", load);
  else load();
}
