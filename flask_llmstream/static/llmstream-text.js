// Plain text in blocks of about 1.5 kB. Part of <llm-stream>. Licence: MIT.

/**
 * In characters. One text node of 40 kB takes Chromium some 13 ms for each piece that is appended: all its lines are
 * laid out again. In blocks of this size it is less than half a millisecond.
 */
const BLOCK = 1500;

export class PlainText {
  #container;
  /** @type {HTMLElement | null} */
  #block = null;
  /** @type {Text | null} */
  #node = null;

  /** @param {HTMLElement} container it is emptied first */
  constructor(container) {
    this.#container = container;
    container.replaceChildren();
  }

  /** @returns {Element | null} the last block, which the cursor stands in */
  get end() {
    return this.#block;
  }

  /** @param {string} text */
  append(text) {
    while (text) {
      if (!this.#block || !this.#node) this.#open();
      const room = BLOCK - /** @type {Text} */ (this.#node).length;
      // The line break between two blocks is their edge, on the page and in the clipboard. It must be the first of
      // several: the last line break of a block shows nothing.
      const at = text.length > room ? this.#edge(text, Math.max(room, 0)) : -1;
      if (at >= 0) {
        this.#write(text.slice(0, at));
        this.#open();
        text = text.slice(at + 1);
        continue;
      }
      this.#write(text);
      return;
    }
  }

  /** @param {string} text @param {number} from @returns {number} */
  #edge(text, from) {
    const node = /** @type {Text} */ (this.#node);
    for (let at = text.indexOf("\n", from); at >= 0; at = text.indexOf("\n", at + 1)) {
      const before = at ? text[at - 1] : node.data.slice(-1);
      if (before && before !== "\n") return at;
    }
    return -1;
  }

  #open() {
    this.#block = document.createElement("div");
    this.#block.className = "llm-block";
    this.#node = document.createTextNode("");
    this.#block.append(this.#node);
    this.#container.append(this.#block);
  }

  /** @param {string} text */
  #write(text) {
    const node = /** @type {Text} */ (this.#node);
    if (node.length < 2 * BLOCK) {
      node.appendData(text);
      return;
    }
    // A very long line: its block cannot be divided, but what was shaped need not be shaped again.
    this.#node = document.createTextNode(text);
    /** @type {HTMLElement} */ (this.#block).append(this.#node);
  }
}
