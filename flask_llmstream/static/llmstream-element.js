// <llm-stream>: shows an answer while a model writes it. Everything it can: docs/element.md. Licence: MIT.

import { StreamFailed, applyDelta, stream } from "./llmstream.js";
import { Follower } from "./llmstream-follow.js";
import { LABELS, dress } from "./llmstream-look.js";
import { PlainText } from "./llmstream-text.js";

/** The answer is long, and its tokens are worth counting, after so many of them or so many seconds. */
const LONG = { tokens: 200, seconds: 5 };
/** In milliseconds: between two updates of a hidden tab, and of the count. */
const HIDDEN_INTERVAL = 250, COUNT_INTERVAL = 500;
/** In characters: a complete answer up to here is read out, a longer one only said to be complete. */
const ANNOUNCED = 1000;
const ACTIVE = ["connecting", "streaming", "reconnecting"];
/** What is said only to those who do not see it. */
const QUIET = ["idle", "connecting", "streaming", "done"];

/** Loaded for the first element that wants it. @type {any} */
let MarkdownText = null;

/** @param {string} name @param {string} className @param {object} [more] */
const make = (name, className, more) => Object.assign(document.createElement(name), { className }, more);

export class LLMStreamElement extends HTMLElement {
  static observedAttributes = ["src", "markdown", "controls"];
  /** Replaced to speak another language; a property of the same name does so for one element. */
  static labels = LABELS;

  /** Sent to `src`, by POST; see `stream()`. @type {any} */
  body = null;
  /** Further options of `stream()`. @type {any} */
  options = {};
  #labels = {};
  #status = "idle";
  #text = "";
  /** @type {any} */
  #value;
  /** @type {any} */
  #error = null;
  /** @type {any} */
  #usage = null;
  #tokens = 0;
  #began = 0;
  #counted = -COUNT_INTERVAL;
  #waiting = "";
  #frame = 0;
  #timer = 0;
  #clearing = 0;
  #started = false;
  /** @type {any} */
  #run = null;
  /** @type {any} PlainText or MarkdownText */
  #renderer;
  /** @type {Element | null} */
  #cursor = null;
  #built = false;
  #parts = /** @type {Record<string, any>} */ ({});
  /** @type {Follower} */
  #follower = /** @type {any} */ (null);

  get src() { return this.getAttribute("src") ?? ""; }
  set src(value) { this.setAttribute("src", value); }
  /** Defaults to POST where there is a body, else to GET. */
  get method() { return this.getAttribute("method") ?? ""; }
  set method(value) { this.setAttribute("method", value); }
  get manual() { return this.hasAttribute("manual"); }
  set manual(value) { this.toggleAttribute("manual", !!value); }
  get markdown() { return this.hasAttribute("markdown"); }
  set markdown(value) { this.toggleAttribute("markdown", !!value); }
  get expectedTokens() { return Number(this.getAttribute("expected-tokens")) || 0; }
  set expectedTokens(value) { this.setAttribute("expected-tokens", String(value)); }

  get status() { return this.#status; }
  get text() { return this.#text; }
  get value() { return this.#value; }
  get error() { return this.#error; }
  get usage() { return this.#usage; }
  get following() { return !!this.#follower?.following; }

  get labels() { return { .../** @type {any} */ (this.constructor).labels, ...this.#labels }; }
  set labels(value) {
    this.#labels = value ?? {};
    if (this.#built) this.#label();
  }

  connectedCallback() {
    // An element that was defined before the page was made may have properties of its own by now.
    for (const name of ["src", "method", "manual", "markdown", "expectedTokens", "labels"]) {
      if (!Object.prototype.hasOwnProperty.call(this, name)) continue;
      const value = /** @type {any} */ (this)[name];
      delete (/** @type {any} */ (this)[name]);
      /** @type {any} */ (this)[name] = value;
    }
    this.#build();
    dress(this);
    document.addEventListener("visibilitychange", this.#onVisibility);
    if (this.#active) this.#follow();
    // In a task of its own: whoever makes an element sets its properties before or after it is inserted.
    if (this.src && !this.manual && !this.#started) queueMicrotask(() => this.#autoStart());
  }

  disconnectedCallback() {
    // Not at once: an element that is moved is taken out and put in again.
    queueMicrotask(() => {
      if (this.isConnected) return;
      document.removeEventListener("visibilitychange", this.#onVisibility);
      this.abort();
      this.#follower.stop();
    });
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (!this.#built || before === now) return;
    if (name === "markdown") this.#render();
    else if (name === "controls") this.#show();
    else if (now) {
      // In a task of its own, when its body and the rest are set, too; where it is on no page, once it is.
      this.#started = false;
      queueMicrotask(() => this.#autoStart());
    }
  }

  /**
   * Requests `src` and shows the answer, instead of the one before.
   * @param {any} [body] sent instead of the property `body`, and kept there
   * @returns {Promise<string>} the status that it ended with; never rejected
   */
  async start(body) {
    if (!this.src) throw new TypeError("<llm-stream> has no src; set it, or give it deltas with push()");
    if (body !== undefined) this.body = body;
    this.#clear();
    this.#started = true;
    const { options } = this;
    const run = (this.#run = stream(this.src, {
      ...options,
      body: this.body,
      method: this.method || options.method,
      onStatus: (status, detail) => {
        if (run === this.#run && ACTIVE.includes(status)) this.#say(status, detail);
        options.onStatus?.(status, detail);
      },
    }));
    try {
      for await (const delta of run) {
        if (run !== this.#run) return "aborted";
        if (delta.type === "done" && run.status === "stopped") this.#finish("stopped", delta);
        else this.push(delta);
      }
    } catch (error) {
      if (run !== this.#run) return "aborted";
      if (/** @type {any} */ (error)?.name === "AbortError") this.#finish("aborted");
      else this.fail(error);
    }
    return this.#status;
  }

  /** The same request once more. It is the reader who asks for it: a POST, too. */
  retry() {
    return this.start();
  }

  /** Has the server stop the model; what it has written until then still comes. */
  async stop() {
    const { stop } = this.#parts;
    if (!this.#active || stop.hasAttribute("aria-disabled")) return false;
    // Not "disabled", which would take the focus away.
    stop.setAttribute("aria-disabled", "true");
    const run = this.#run;
    if (!run) {
      this.#finish("stopped");
      return false;
    }
    const told = await run.stop();
    // The server would not hear of it, and goes on: the reader may say it once more.
    if (!told && run === this.#run) stop.removeAttribute("aria-disabled");
    return told;
  }

  /** Closes the connection. The text stays. */
  abort() {
    if (!this.#active) return;
    const run = this.#run;
    this.#run = null;
    this.#finish("aborted");
    run?.abort();
  }

  /** Closes the connection and empties the element. */
  reset() {
    this.#clear();
    this.#say("idle");
  }

  #clear() {
    const run = this.#run;
    this.#run = null;
    run?.abort();
    this.#build();
    this.#cancel();
    this.#text = this.#waiting = "";
    this.#value = undefined;
    this.#error = this.#usage = null;
    this.#tokens = this.#began = 0;
    this.#counted = -COUNT_INTERVAL;
    this.#status = "idle";
    this.#parts.stop.removeAttribute("aria-disabled");
    this.#parts.count.textContent = "";
    this.#follower.stop();
    this.#render();
  }

  /** Shows one delta of a stream that is read by somebody else. @param {any} delta as `stream()` yields it */
  push(delta) {
    this.#build();
    if (!this.#active) {
      this.#clear();
      this.#say("streaming");
    } else if (this.#run && delta.channel !== undefined) {
      // It belongs to one of several answers, which the page shows where it wants.
      this.#tell("llm-delta", delta);
      return;
    }
    const { type } = delta;
    if (type === "text") {
      this.#began ||= performance.now();
      this.#tokens++;
      this.#text += delta.text;
      this.#waiting += delta.text;
      this.#schedule();
    } else if (type === "json") {
      this.#value = this.#run ? this.#run.value : applyDelta(this.#value, delta);
      this.#tell("llm-value", { value: this.#value, delta });
    } else if (type === "usage") {
      this.#usage = delta;
    }
    if (delta.end === "failed") this.fail(new StreamFailed(delta.message, delta.code, delta.retryable));
    else if (type === "done" || delta.end === "done") this.#finish("done", delta);
    else this.#tell("llm-delta", delta);
  }

  /** Says that the stream has failed. @param {any} error */
  fail(error) {
    this.#build();
    this.#error = error;
    this.#finish("failed");
    this.#tell("llm-error", { error });
  }

  /** Writes at once what waits for the next frame. */
  flush() {
    this.#cancel();
    this.#flush(true);
  }

  get #active() {
    return ACTIVE.includes(this.#status);
  }

  #autoStart() {
    if (this.isConnected && this.src && !this.manual && !this.#started) this.start();
  }

  #build() {
    if (this.#built) return;
    this.#built = true;
    const status = make("p", "llm-status");
    status.setAttribute("role", "status");
    // Screen readers do not speak of what is busy, and the nearest attribute says what is.
    status.setAttribute("aria-busy", "false");
    const stop = make("button", "llm-stop", { type: "button", onclick: () => this.stop() });
    const retry = make("button", "llm-retry", { type: "button", onclick: () => this.retry() });
    const jump = make("button", "llm-jump", { type: "button", onclick: () => this.#jump() });
    const [text, bar, end] = [make("div", "llm-text"), make("div", "llm-bar"), make("div", "llm-end")];
    const count = make("span", "llm-count");
    bar.append(status, count, stop, retry);
    end.append(jump);
    this.#parts = { text, bar, status, count, stop, retry, end, jump };
    // What stands there is for browsers without JavaScript.
    this.replaceChildren(text, bar, end);
    if (!this.hasAttribute("role")) this.setAttribute("role", "group");
    this.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || event.isComposing || !this.#active) return;
      event.preventDefault();
      this.stop();
    });
    this.#follower = new Follower(this, text, () => { this.#parts.end.hidden = !this.#follower.away; });
    this.#label();
    this.#render();
    this.#show();
  }

  #label() {
    const { labels } = this, { stop, retry, jump } = this.#parts;
    [stop.textContent, retry.textContent, jump.textContent] = [labels.stop, labels.retry, labels.jump];
    if (!this.hasAttribute("aria-label") && !this.hasAttribute("aria-labelledby")) {
      this.setAttribute("aria-label", labels.answer);
    }
  }

  /** Begins with the text so far, as Markdown where that is wanted and its module is there. */
  #render() {
    const { text } = this.#parts;
    const plain = !this.markdown || !MarkdownText;
    text.toggleAttribute("data-plain", plain);
    this.#renderer = plain ? new PlainText(text) : new MarkdownText(text);
    this.#cursor = null;
    this.#waiting = this.#text;
    this.#flush();
    if (!this.markdown || MarkdownText) return;
    import("./llmstream-markdown.js").then((module) => {
      ({ MarkdownText } = module);
      if (this.markdown && this.#renderer instanceof PlainText) this.#render();
    }, () => {
      // The text is there, plain; the browser has said what is missing.
    });
  }

  #schedule() {
    if (this.#frame || this.#timer) return;
    // No frame comes while nobody looks.
    if (document.hidden) this.#timer = setTimeout(this.#onFrame, HIDDEN_INTERVAL);
    else this.#frame = requestAnimationFrame(this.#onFrame);
  }

  #cancel() {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#timer);
    this.#frame = this.#timer = 0;
  }

  #onFrame = () => {
    this.#frame = this.#timer = 0;
    this.#flush();
  };

  #onVisibility = () => {
    if (!this.#frame && !this.#timer) return;
    this.#cancel();
    this.#schedule();
  };

  /** @param {boolean} [now] even where the last update was dear */
  #flush(now = !this.#active) {
    const text = this.#waiting;
    this.#waiting = "";
    const active = this.#active;
    this.#renderer.append(text);
    if (this.#renderer.update?.(!active, now)) this.#schedule();
    this.#point();
    this.#count();
  }

  /** Puts the cursor where the text goes on. */
  #point() {
    const end = this.#active ? this.#renderer.end ?? this.#parts.text : null;
    if (end === this.#cursor) return;
    const left = this.#cursor;
    left?.classList.remove("llm-cursor");
    if (left?.className === "") left.removeAttribute("class");
    end?.classList.add("llm-cursor");
    this.#cursor = end;
  }

  #count() {
    const expected = this.expectedTokens, now = performance.now();
    if (!expected || !this.#began || now - this.#counted < COUNT_INTERVAL && this.#active) return;
    const long = this.#tokens >= LONG.tokens || now - this.#began >= LONG.seconds * 1000;
    if (!long) return;
    this.#counted = now;
    const count = this.#active ? this.#tokens : this.#usage?.output_tokens ?? this.#tokens;
    this.#parts.count.textContent = this.labels.count
      .replace("{count}", count.toLocaleString()).replace("{expected}", expected.toLocaleString());
  }

  /** @param {string} status @param {any} [done] */
  #finish(status, done) {
    if (done?.usage) this.#usage = done.usage;
    this.#cancel();
    this.#run = null;
    this.#status = status;
    this.#flush();
    this.#show();
    this.#follower.keep();
    if (this.#follower.following) this.#follower.stop();
    // Last: whoever hears of it may begin the next answer at once.
    const { reason } = done ?? {}, ended = { text: this.#text, value: this.#value, reason, usage: this.#usage };
    this.#tell("llm-status", done ? { reason, usage: done.usage, status } : { status });
    if (done) this.#tell("llm-done", ended);
  }

  /** @param {string} status @param {any} [detail] */
  #say(status, detail = {}) {
    const before = this.#status;
    this.#status = status;
    if (!ACTIVE.includes(before) && this.#active) this.#follow();
    this.#point();
    this.#show();
    this.#tell("llm-status", { ...detail, status });
  }

  #follow() {
    this.#follower.start();
    // A keyboard must reach what scrolls.
    if (this.#follower.own && !this.hasAttribute("tabindex")) this.tabIndex = 0;
  }

  #show() {
    const { text, status, stop, retry, end } = this.#parts, { labels } = this, now = this.#status;
    clearTimeout(this.#clearing);
    let said = labels[now] ?? "";
    if (now === "failed") said = this.#explain() || said;
    if (now === "done" && this.#text && this.#text.length <= ANNOUNCED) {
      // As it is read, without the marks of Markdown.
      said = this.#renderer instanceof PlainText ? this.#text : text.innerText.trim();
      // Whoever walks through the page finds the answer once. Other words would be read out, too.
      this.#clearing = setTimeout(() => { status.textContent = ""; }, 10000);
    }
    if (status.textContent !== said) status.textContent = said;
    status.toggleAttribute("data-quiet", QUIET.includes(now));
    if (now === "idle") end.hidden = true;
    this.dataset.status = now;
    this.setAttribute("aria-busy", String(this.#active));
    const controls = this.getAttribute("controls") !== "none";
    const focused = /** @type {Document | ShadowRoot} */ (this.getRootNode()).activeElement; // of its own tree
    stop.hidden = !controls || !this.#active;
    retry.hidden = !controls || !this.src || !["failed", "stopped", "aborted"].includes(now);
    // A button that vanishes hands the focus on.
    if (focused === stop && stop.hidden || focused === retry && retry.hidden) this.#focus(retry.hidden ? stop : retry);
  }

  /** @returns {string} what the server has said of the failure */
  #explain() {
    const error = this.#error;
    if (error?.code === "interrupted" || error?.code === "lost") return this.labels.interrupted;
    try {
      return JSON.parse(error.body).error.message;
    } catch {
      return error?.code === "refused" ? this.labels.failed : error?.message;
    }
  }

  /** @param {HTMLElement} wanted a button, or the element itself where it is hidden */
  #focus(wanted) {
    if (wanted.hidden) {
      if (!this.hasAttribute("tabindex")) this.tabIndex = -1;
      this.focus({ preventScroll: true });
    } else {
      wanted.focus({ preventScroll: true });
    }
  }

  #jump() {
    if (!this.hasAttribute("tabindex")) this.tabIndex = -1;
    this.focus({ preventScroll: true });
    this.#follower.jump();
    if (!this.#active) this.#follower.stop();
  }

  /** @param {string} name @param {any} detail */
  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

if (!customElements.get("llm-stream")) customElements.define("llm-stream", LLMStreamElement);
