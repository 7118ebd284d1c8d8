// Keeps the end of a growing element in view until its reader scrolls away. Part of <llm-stream>. Licence: MIT.

/** In pixels: whoever is as close to the end as this is at the end. */
const NEAR = 70;
const UPWARDS = ["ArrowUp", "PageUp", "Home"];
const EDITABLE = "input, textarea, select, [contenteditable]";

/** @param {Element} element @returns {Element} what scrolls when *element* grows: itself, an ancestor or the page */
function scrollerOf(element) {
  const { body, documentElement: root } = document;
  for (let each = /** @type {Element | null} */ (element); each && each !== root; each = each.parentElement) {
    const scrolls = ["auto", "scroll", "overlay"].includes(getComputedStyle(each).overflowY);
    if (scrolls && (each !== body || bodyScrolls(body, getComputedStyle(root).overflowY))) return each;
  }
  return document.scrollingElement ?? root;
}

/** The page does what is said of its body, unless something else is said of the page. @param {Element} body @param {string} page */
function bodyScrolls(body, page) {
  if (page === "hidden" || page === "clip") return true;
  return page !== "visible" && body !== document.scrollingElement && body.scrollHeight > body.clientHeight;
}

export class Follower {
  /** Whether the end is kept in view. */
  following = false;
  /** Whether the element is its own scroll container. */
  own = false;
  #element;
  #content;
  #changed;
  /** @type {Element | undefined} */
  #scroller;
  /** @type {AbortController | undefined} */
  #listening;
  #observer;
  #margin = 0;
  #last = 0;
  #held = false;

  /**
   * @param {HTMLElement} element what grows
   * @param {Element} content what is watched in it; an element that scrolls keeps its own size
   * @param {() => void} changed called when the reader leaves the end or comes to it
   */
  constructor(element, content, changed) {
    this.#element = element;
    this.#changed = changed;
    // After the layout of a frame and before it is painted: what is read here costs no second layout.
    this.#observer = new ResizeObserver(() => this.keep());
    this.#content = content;
  }

  /** Begins; the reader who sees the end, or nothing yet, is taken along. */
  start() {
    this.stop();
    const scroller = (this.#scroller = scrollerOf(this.#element));
    const page = scroller === document.scrollingElement || scroller === document.documentElement;
    this.own = scroller === this.#element;
    this.#margin = this.own ? 0 : parseFloat(getComputedStyle(scroller).scrollPaddingBottom) || 0;
    this.#last = scroller.scrollTop;
    this.#held = false;
    this.following = this.distance() <= NEAR;
    const target = page ? window : scroller;
    const { signal } = (this.#listening = new AbortController());
    const quiet = { signal, passive: true };
    target.addEventListener("scroll", () => this.#scrolled(), quiet);
    // Before anything has moved: a scroll of ours would end a smooth one that has just begun.
    target.addEventListener("wheel", (event) => {
      const { deltaY, ctrlKey } = /** @type {WheelEvent} */ (event); // with Ctrl it zooms
      if (deltaY < 0 && !ctrlKey && scroller.scrollTop > 0) this.leave();
    }, quiet);
    target.addEventListener("keydown", (event) => {
      const { key, shiftKey, target: at } = /** @type {KeyboardEvent} */ (event);
      const up = UPWARDS.includes(key) || (key === " " && shiftKey);
      if (up && scroller.scrollTop > 0 && !(/** @type {Element} */ (at).closest?.(EDITABLE))) this.leave();
    }, quiet);
    // A finger, a mouse that selects, the scrollbar: nothing moves under what is held.
    target.addEventListener("pointerdown", (event) => {
      // The end of a click that opens a menu may be the menu's to hear.
      if (!(/** @type {PointerEvent} */ (event).button)) this.#held = true;
    }, quiet);
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, () => { this.#held = false; }, quiet);
    }
    target.addEventListener("touchstart", () => { this.#held = true; }, quiet);
    for (const name of ["touchend", "touchcancel"]) {
      window.addEventListener(name, () => { this.#held = false; }, quiet);
    }
    this.#observer.observe(this.#content);
    // The end is also pushed out of view by a keyboard that slides in, or a field that grows below.
    if (page) window.addEventListener("resize", () => this.keep(), quiet);
    else this.#observer.observe(scroller);
    this.#changed();
  }

  /** Ends; nothing is scrolled any more. */
  stop() {
    this.#listening?.abort();
    this.#observer.disconnect();
    this.#scroller = undefined;
  }

  /** @returns {number} pixels from what is seen to the end of the element; negative where more than it is seen */
  distance() {
    const scroller = this.#scroller;
    if (!scroller) return 0;
    if (this.own) return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    const page = scroller === document.scrollingElement;
    const bottom = page ? window.innerHeight : scroller.getBoundingClientRect().top + scroller.clientTop + scroller.clientHeight;
    return this.#element.getBoundingClientRect().bottom + this.#margin - bottom;
  }

  /** Whether the end is out of sight and the reader is left alone. */
  get away() {
    return !!this.#scroller && !this.following && this.distance() > NEAR;
  }

  /** Scrolls to the end where the reader is taken along. */
  keep() {
    const scroller = this.#scroller;
    if (!scroller) return;
    if (this.following && this.#selecting()) this.leave();
    if (this.following && !this.#held) {
      const distance = this.distance();
      // Not as the page's scroll-behavior has it: one smooth scroll in each frame arrives nowhere.
      if (distance > 0) scroller.scrollTo({ top: scroller.scrollTop + distance, behavior: "instant" });
      this.#last = scroller.scrollTop;
    }
    if (!this.following) this.#changed();
  }

  /** Takes the reader to the end, and along from there. */
  jump() {
    getSelection()?.removeAllRanges();
    this.following = true;
    this.keep();
    this.#changed();
  }

  /** Leaves the reader alone. */
  leave() {
    if (!this.following) return;
    this.following = false;
    this.#changed();
  }

  #selecting() {
    const selection = getSelection();
    return !!selection && !selection.isCollapsed && selection.containsNode(this.#content, true);
  }

  #scrolled() {
    const scroller = this.#scroller;
    if (!scroller) return;
    const top = scroller.scrollTop, up = top < this.#last - 1, down = top > this.#last + 1;
    this.#last = top;
    const distance = this.distance();
    // Upwards, however it was done; but not where the text has become shorter and its end is still in view.
    if (up && distance > 2) this.leave();
    else if (down && distance <= NEAR) this.following = true;
    this.#changed();
  }
}
