// Markdown while it is being written, for <llm-stream markdown>. Part of <llm-stream>. Licence: MIT.
//
// marked makes HTML of it and DOMPurify keeps of that what a text needs: no HTML of a model's own, no image, no link
// but to the web, a mail address or a telephone. Both stand in vendor/, with their licences.

import { Marked } from "./vendor/marked.esm.js";
import createDOMPurify from "./vendor/purify.es.mjs";
import { closed } from "./llmstream-unclosed.js";

/** Blocks at the end that may still change: what follows a list may continue it, a line below makes a heading. */
const UNSETTLED = 2;
/** An update may take a frame's time; one that takes longer, in milliseconds, is followed by a pause of its length. */
const DEAR = 8;

const ESCAPES = /** @type {Record<string, string>} */ ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" });
/** @param {string} text */
const escape = (text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

/** @type {any} the types of marked are not part of this package */
const marked = new /** @type {any} */ (Marked)({
  gfm: true,
  renderer: {
    // What a model writes as HTML is shown as it is; but many break the lines of a table cell with it.
    html: (/** @type {any} */ { text, block }) => {
      const shown = /^\s*<br\s*\/?>\s*$/i.test(text) ? "<br>" : escape(text);
      return block ? `<p>${shown}</p>` : shown;
    },
    // An image is fetched from where the text says, and its address can carry what the model knows of the reader.
    image: (/** @type {any} */ { href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: (/** @type {any} */ { checked }) => (checked ? "\u2611 " : "\u2610 "),
  },
});

/** @type {any} */
const purify = createDOMPurify(window);
const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul".split(" ");
const RULES = {
  ALLOWED_TAGS: [...TAGS, "#text"],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  // No other scheme; what has none is relative to the page.
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|tel:|[^a-z]|[a-z+.-]+(?:[^a-z+.\-:]|$))/i,
  RETURN_DOM_FRAGMENT: /** @type {const} */ (true),
};
purify.addHook("uponSanitizeAttribute", (/** @type {Element} */ _, /** @type {any} */ data) => {
  if (data.attrName === "class") data.keepAttr = /^language-[\w+#.-]{1,40}$/.test(data.attrValue);
});
purify.addHook("afterSanitizeAttributes", (/** @type {Element} */ node) => {
  if (node.tagName === "PRE") node.setAttribute("tabindex", "0"); // it may scroll, and a keyboard must reach it
  if (node.tagName !== "A" || !node.hasAttribute("href")) return;
  node.setAttribute("rel", "noopener noreferrer nofollow");
  if (!node.getAttribute("href")?.startsWith("#")) node.setAttribute("target", "_blank");
});

// Trusted Types may forbid it to make nodes, and what it makes then is the word "null".
if (purify.sanitize("<p>a</p>", RULES).textContent !== "a") {
  throw new Error("DOMPurify makes no nodes here; does trusted-types of the page's policy name dompurify?");
}

/**
 * Makes *kept* equal to *wanted* and leaves alone what is so already: the focus, a selection, code that is scrolled
 * sideways and a link that is being clicked outlive what is written behind them.
 * @param {Element} kept
 * @param {Element | DocumentFragment} wanted its nodes may be taken
 */
function morph(kept, wanted) {
  let node = kept.firstChild;
  for (const next of [...wanted.childNodes]) {
    const following = node?.nextSibling ?? null;
    if (!node) kept.append(next);
    else if (node.nodeName !== next.nodeName) node.replaceWith(next);
    else if (node instanceof Text) rewrite(node, /** @type {Text} */ (next).data);
    else dress(/** @type {Element} */ (node), /** @type {Element} */ (next));
    node = following;
  }
  for (let left = node; left; left = node) {
    node = left.nextSibling;
    left.remove();
  }
}

/** @param {Text} node @param {string} text */
function rewrite(node, text) {
  const { data } = node;
  if (data === text) return;
  let same = 0;
  while (same < data.length && data[same] === text[same]) same++;
  node.replaceData(same, data.length - same, text.slice(same));
}

/** @param {Element} node @param {Element} wanted */
function dress(node, wanted) {
  if (node.classList.contains("llm-cursor")) wanted.classList.add("llm-cursor"); // not ours
  for (const { name } of [...node.attributes]) if (!wanted.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  morph(node, wanted);
}

/** @param {{raw: string}[]} tokens */
const size = (tokens) => tokens.reduce((length, { raw }) => length + raw.length, 0);

/** @typedef {{raw: string, links: string, element: HTMLElement}} Block */

export class MarkdownText {
  #container;
  /** Where the blocks that may change begin. */
  #source = "";
  /** Definitions of links, by name: those of settled blocks, and all so far. @type {any} */
  #settled = {};
  /** @type {any} */
  #links = {};
  /** @type {Block[]} */
  #blocks = [];
  #carriage = "";
  #changed = false;
  #resting = 0;

  /** @param {HTMLElement} container it is emptied first */
  constructor(container) {
    this.#container = container;
    container.replaceChildren();
  }

  /** @returns {Element | null} the innermost element at the end, which the cursor stands in */
  get end() {
    let found = /** @type {Element | null} */ (this.#container.lastElementChild);
    for (let next = found; next; found = next) {
      let last = found?.lastChild;
      while (last?.nodeType === Node.TEXT_NODE && !last.nodeValue?.trim()) last = last.previousSibling;
      next = last instanceof Element && !["BR", "HR", "A"].includes(last.tagName) ? last : null;
      if (!next) break;
    }
    return found;
  }

  /** @param {string} text */
  append(text) {
    if (!text) return;
    // marked counts in lines that end in LF.
    text = this.#carriage + text;
    this.#carriage = text.endsWith("\r") ? "\r" : "";
    if (this.#carriage) text = text.slice(0, -1);
    this.#source += text.replace(/\r\n?/g, "\n");
    this.#changed = true;
  }

  /**
   * Shows what was appended.
   * @param {boolean} complete whether nothing follows
   * @param {boolean} now whether nothing may wait
   * @returns {boolean} whether some of it waits for a later frame
   */
  update(complete, now) {
    const began = performance.now();
    if (!now && began < this.#resting) return this.#changed;
    if (!this.#changed && !complete) return false;
    this.#changed = false;
    this.#links = this.#settled;
    const tokens = this.#lex(this.#source);
    this.#links = tokens.links;
    const whole = size(tokens) === this.#source.length;
    /** @type {any[]} */
    const shown = tokens.filter((/** @type {any} */ token) => token.type !== "space" && token.type !== "def");
    const settled = whole && !complete ? shown.length - UNSETTLED : 0;
    shown.forEach((token, index) => {
      const last = index === shown.length - 1 && !complete;
      this.#put(index, last ? closed(token.raw, token.type) : token.raw);
    });
    for (const { element } of this.#blocks.splice(shown.length)) element.remove();
    if (settled > 0) {
      const first = tokens.indexOf(shown[settled]);
      const passed = size(tokens.slice(0, first));
      for (const { type, tag, href, title } of tokens.slice(0, first)) {
        if (type === "def") this.#settled[tag] ??= { href, title };
      }
      this.#source = this.#source.slice(passed);
      this.#blocks.splice(0, settled);
    }
    const took = performance.now() - began;
    if (took > DEAR) this.#resting = performance.now() + took * 4;
    return false;
  }

  /** @param {string} source @returns {any} */
  #lex(source) {
    const lexer = new marked.Lexer(marked.defaults);
    Object.assign(lexer.tokens.links, this.#links);
    return lexer.lex(source);
  }

  /** @param {number} index @param {string} raw */
  #put(index, raw) {
    const block = this.#blocks[index];
    const links = JSON.stringify(this.#links);
    if (block?.raw === raw && block.links === links) return;
    const tokens = this.#lex(raw);
    const content = purify.sanitize(marked.parser(tokens), RULES);
    const element = block?.element ?? document.createElement("div");
    morph(element, content);
    const wide = tokens[0]?.type === "table";
    if (wide !== element.classList.contains("llm-wide")) {
      element.classList.toggle("llm-wide", wide);
      // A table that is too wide scrolls, and a keyboard must reach what scrolls.
      if (wide) element.tabIndex = 0;
      else element.removeAttribute("tabindex");
    }
    if (block) {
      Object.assign(block, { raw, links });
      return;
    }
    element.classList.add("llm-block");
    element.dir = "auto"; // markers of a list, columns of a table, the line of a quotation
    this.#blocks.push({ raw, links, element });
    this.#container.append(element);
  }
}
