// Closes what a piece of Markdown has begun and not ended. Part of <llm-stream markdown>. Licence: MIT.
//
// While it is being written **bold is bold before its end has come, a link is its text, and the marks that may still
// become something else are not shown. What is complete is never changed.

/** Where the last line, list item, heading or quotation begins: what is open ends there. */
const SEGMENT = /(?:^|\n)(?:[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+(?:\[[ xX]\][ \t]+)?|[ \t]*#{1,6}[ \t]+|(?:[ \t]*>[ \t]?)+|[ \t]*\n)/g;
const WORD = /[\p{L}\p{N}_]/u;

/**
 * @param {string} raw the last block so far
 * @param {string} type what marked takes it for
 * @returns {string} the same, complete
 */
export function closed(raw, type) {
  if (["code", "html", "hr"].includes(type)) return raw;
  let text = raw;
  if (type === "paragraph" || type === "heading" || type === "text") text = table(text);
  // A line of these alone is a heading, a list, a fence or a rule one day; "Text\n-" is no heading yet.
  text = text.replace(/(^|\n)[ \t]*(?:-{1,2}|=+|#{1,6}|`{1,2}|~{1,2}|\*{1,2}|_{1,2})[ \t]*$/, "$1").replace(/\n$/, "");
  if (text.endsWith("|") || /(?:^|\n)[ \t]*\|/.test(text)) return rows(text);
  let from = 0;
  for (const { index, 0: found } of text.matchAll(SEGMENT)) from = index + found.length;
  return text.slice(0, from) + inline(text.slice(from));
}

/** A header that the line of dashes below it is still missing, or has not wholly. @param {string} text */
function table(text) {
  const found = /(?:^|\n)([ \t]*\|[^\n]*)(?:\n[ \t]*[|:\- \t]*)?$/.exec(text);
  if (!found || !/\|.*\|/.test(found[1])) return text;
  const header = found[1].trim().replace(/([^|])$/, "$1|");
  const columns = header.replace(/\\\|/g, "").split("|").length - 2;
  if (columns < 1) return text;
  const start = found.index + (text[found.index] === "\n" ? 1 : 0);
  return `${text.slice(0, start)}${start ? "\n" : ""}${header}\n|${" --- |".repeat(columns)}`;
}

/** The last cell of a table. @param {string} text */
function rows(text) {
  const from = Math.max(text.lastIndexOf("|"), text.lastIndexOf("\n")) + 1;
  return text.slice(0, from) + inline(text.slice(from));
}

/** @param {string} text without structure of blocks @returns {string} */
function inline(text) {
  const space = /\s*$/.exec(text)?.[0] ?? "";
  text = text.slice(0, text.length - space.length);
  /** @type {{mark: string, at: number}[]} */
  const open = [];
  /** @type {{at: number, image: boolean}[]} */
  const brackets = [];
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\\") {
      at++;
    } else if (character === "`") {
      const run = /`+/y;
      run.lastIndex = at;
      const mark = /** @type {RegExpExecArray} */ (run.exec(text))[0];
      const end = closing(text, mark, at + mark.length);
      if (end < 0) return code(text, at, mark, open) + space;
      at = end - 1;
    } else if (character === "[") {
      brackets.push({ at, image: text[at - 1] === "!" });
    } else if (character === "]" && brackets.length) {
      const { at: from, image } = /** @type {{at: number, image: boolean}} */ (brackets.pop());
      if (text[at + 1] !== "(") continue;
      const end = address(text, at + 2);
      // Only its text: an address that is not all there leads elsewhere.
      if (end < 0) return inline(text.slice(0, from - (image ? 1 : 0)) + text.slice(from + 1, at)) + space;
      at = end;
    } else if (character === "*" || character === "_" || character === "~") {
      let length = 1;
      while (text[at + length] === character) length++;
      if (character !== "~" || length === 2) emphasis(text, at, length, open);
      at += length - 1;
    }
  }
  const bracket = brackets.find(({ at }) => text.length - at < 300 && !text.slice(at).includes("\n"));
  if (bracket) {
    const { at, image } = bracket;
    return inline(text.slice(0, at - (image ? 1 : 0)) + text.slice(at + 1)) + space;
  }
  return close(text, open) + space;
}

/** @param {string} text @param {string} mark @param {number} from @returns {number} behind the mark that ends a code */
function closing(text, mark, from) {
  const run = /`+/g;
  run.lastIndex = from;
  for (let found; (found = run.exec(text));) if (found[0] === mark) return run.lastIndex;
  return -1;
}

/** @param {string} text @param {number} at @param {string} mark @param {{mark: string, at: number}[]} open */
function code(text, at, mark, open) {
  const inside = text.slice(at + mark.length).replace(/`+$/, "");
  return close(text.slice(0, at) + (inside.trim() ? mark + inside + mark : inside), open);
}

/** @param {string} text @param {number} from @returns {number} where the address of a link ends, or -1 */
function address(text, from) {
  for (let at = from, depth = 1; at < text.length; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === "(") depth++;
    else if (text[at] === ")" && !--depth) return at;
  }
  return -1;
}

/** @param {string} text @param {number} at @param {number} length @param {{mark: string, at: number}[]} open */
function emphasis(text, at, length, open) {
  const character = text[at], before = text[at - 1] ?? " ", after = text[at + length] ?? " ";
  const left = !/\s/.test(after) && !(character === "_" && WORD.test(before));
  const right = !/\s/.test(before) && !(character === "_" && WORD.test(after));
  for (let rest = length; rest > 0;) {
    const last = open[open.length - 1];
    if (right && last?.mark[0] === character && last.mark.length <= rest) {
      open.pop();
      rest -= last.mark.length;
    } else if (left) {
      const mark = character.repeat(Math.min(rest, 2));
      open.push({ mark, at: at + length - rest });
      rest -= mark.length;
    } else {
      return;
    }
  }
}

/** @param {string} text @param {{mark: string, at: number}[]} open */
function close(text, open) {
  // Half of a mark that ends something, or one that has begun nothing yet.
  const tail = /(?:\*+|_+|~+)$/.exec(text)?.[0] ?? "";
  const last = open[open.length - 1];
  if (tail && text[text.length - tail.length - 1] !== "\\") {
    if (last && last.mark[0] === tail[0] && tail.length < last.mark.length) text = text.slice(0, -tail.length);
    else if (/(?:^|\s)$/.test(text.slice(0, -tail.length))) text = text.slice(0, -tail.length).trimEnd();
  }
  for (const { mark } of [...open].reverse()) text += mark;
  return text;
}
