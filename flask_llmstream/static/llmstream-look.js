// What <llm-stream> looks like, and what it says. Part of <llm-stream>. Licence: MIT.

/** What is said; `<llm-stream>.labels` replaces some for one element, `LLMStreamElement.labels` for all. */
export const LABELS = {
  answer: "Answer",
  connecting: "Waiting for the answer",
  streaming: "The answer is being written",
  reconnecting: "The connection was lost. Reconnecting…",
  done: "The answer is complete",
  stopped: "Stopped",
  aborted: "Ended before it was complete",
  failed: "The answer could not be loaded",
  interrupted: "The connection was lost before the answer was complete",
  stop: "Stop",
  retry: "Try again",
  jump: "Jump to the end",
  /** {count} tokens so far, {expected} by expected-tokens. */
  count: "{count} of about {expected} tokens",
};

// ":where" has no specificity: every rule of a page wins.
const STYLE = `
:where(llm-stream) {
  --_cursor: #b7bdc7; --_soft: #646b76; --_line: #8a919c; --_face: #fff; --_code: #8881;
  --_accent: #1f5fd0; --_bad: #b3261e;
  position: relative; overflow-wrap: anywhere;
}
/* Even a rule of no specificity wins over the browser's own, which hides what is hidden. */
:where(llm-stream:not([hidden])) { display: block; }
@supports (color: light-dark(red, red)) {
  :where(llm-stream) {
    --_cursor: light-dark(#c4c9d1, #868d98); --_soft: light-dark(#5c636e, #a3aab5);
    --_line: light-dark(#8a919c, #737b87); --_face: light-dark(#fff, #23272e);
    --_accent: light-dark(#1f5fd0, #8db4ff); --_bad: light-dark(#b3261e, #ff9b92);
  }
}
:where(llm-stream:focus-visible, llm-stream :is(button, pre, .llm-wide):focus-visible) {
  outline: 2px solid var(--llm-accent, var(--_accent)); outline-offset: 2px;
}
:where(llm-stream > .llm-text) { max-inline-size: var(--llm-measure, none); }
:where(llm-stream > .llm-text[data-plain]) { white-space: pre-wrap; }
:where(.llm-text > .llm-block, .llm-block :is(p, li, h1, h2, h3, h4, h5, h6, th, td)) { unicode-bidi: plaintext; }
:where(.llm-block li, .llm-block li > p) { text-align: -webkit-match-parent; text-align: match-parent; }
:where(.llm-text > .llm-wide) { overflow-x: auto; }
:where(.llm-wide > table) { overflow-wrap: break-word; }
:where(.llm-text > .llm-block:first-child > :first-child) { margin-block-start: 0; }
:where(.llm-text > .llm-block:last-child > :last-child) { margin-block-end: 0; }
:where(llm-stream) .llm-cursor::after {
  content: ""; display: inline-block; inline-size: var(--llm-cursor-width, .55em); block-size: 1.1em;
  margin-inline-start: 2px; vertical-align: -.18em; border-radius: 2px;
  background: var(--llm-cursor-color, var(--_cursor)); forced-color-adjust: none;
  animation: llm-blink var(--llm-cursor-period, 1.1s) steps(1) infinite;
}
@keyframes llm-blink { 50% { opacity: 0; } }
@media (prefers-reduced-motion: reduce) {
  :where(llm-stream) .llm-cursor::after { animation: none; }
}
@media (forced-colors: active) {
  :where(llm-stream) .llm-cursor::after { background: GrayText; }
}
:where(.llm-bar, .llm-end) { user-select: none; -webkit-user-select: none; }
:where(.llm-bar) {
  display: flex; flex-wrap: wrap; align-items: center; gap: .35rem .75rem;
  font-size: .85em; color: var(--llm-soft-color, var(--_soft));
}
:where(llm-stream:not([data-status=idle]) > .llm-bar) { margin-block-start: .6em; }
:where(.llm-status) { margin: 0; }
:where(llm-stream[data-status=failed] > .llm-bar > .llm-status) { color: var(--llm-error-color, var(--_bad)); }
.llm-status[data-quiet] { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); }
:where(.llm-bar button, .llm-end button) {
  font: inherit; cursor: pointer; padding: .25em .9em; border-radius: var(--llm-radius, 1.2em);
  border: 1px solid var(--llm-line-color, var(--_line)); color: var(--llm-accent, var(--_accent));
  background: var(--llm-face-color, var(--_face));
}
:where(.llm-bar button[aria-disabled]) { cursor: default; opacity: .6; }
:where(.llm-end) { position: sticky; inset-block-end: .75rem; block-size: 0; text-align: center; z-index: 1; }
:where(.llm-end button) { position: absolute; inset-block-end: 0; inset-inline-start: 50%; translate: -50%; font-size: .85em;
  white-space: nowrap; box-shadow: 0 1px 6px #0003; }
:where([dir=rtl] .llm-end button) { translate: 50%; }
llm-stream > [hidden], .llm-bar > [hidden], .llm-end > [hidden], .llm-count:empty { display: none !important; }
:where(.llm-text pre) {
  direction: ltr; overflow-x: auto; white-space: pre; overflow-wrap: normal; padding: .75em 1em; border-radius: 8px; background: var(--llm-code-color, var(--_code));
}
:where(.llm-text code) { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
:where(.llm-text :not(pre) > code) { padding: .1em .3em; border-radius: 4px; background: var(--llm-code-color, var(--_code)); }
:where(.llm-text table) { border-collapse: collapse; }
:where(.llm-text :is(th, td)) { padding: .3em .7em; border: 1px solid var(--llm-line-color, var(--_line)); }
:where(.llm-text th:not([align])) { text-align: start; }
:where(.llm-text blockquote) { margin-inline: 0; padding-inline-start: 1em; border-inline-start: 3px solid var(--llm-line-color, var(--_line)); }
:where(.llm-text a) { color: var(--llm-accent, var(--_accent)); }
@media print {
  :where(.llm-bar button, .llm-end) { display: none; }
  :where(llm-stream) .llm-cursor::after { display: none; }
}
`;

/** @type {WeakMap<Document, CSSStyleSheet>} */
const sheets = new WeakMap();

/** Styles the page, or the shadow tree, that *element* is in; no CSP forbids a sheet that is made by a script. */
export function dress(/** @type {Element} */ element) {
  const root = /** @type {Document | ShadowRoot} */ (element.getRootNode());
  const page = element.ownerDocument, view = page.defaultView;
  if (!view || !("adoptedStyleSheets" in root)) return;
  let sheet = sheets.get(page);
  if (!sheet) {
    sheet = /** @type {CSSStyleSheet} */ (new (/** @type {any} */ (view).CSSStyleSheet)());
    sheet.replaceSync(STYLE);
    sheets.set(page, sheet);
  }
  if (!root.adoptedStyleSheets.includes(sheet)) root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet];
}
