import type { Delta, StatusDetail, StreamOptions, Usage } from "./llmstream.js";

export type ElementStatus =
  | "idle" | "connecting" | "streaming" | "reconnecting" | "done" | "stopped" | "aborted" | "failed";

/** What is said; `count` holds {count} and {expected}. */
export interface Labels {
  answer: string;
  connecting: string;
  streaming: string;
  reconnecting: string;
  done: string;
  stopped: string;
  aborted: string;
  failed: string;
  interrupted: string;
  stop: string;
  retry: string;
  jump: string;
  count: string;
}

/** `<llm-stream>`: shows an answer while a model writes it. */
export class LLMStreamElement extends HTMLElement {
  /** What all elements say that have no labels of their own. */
  static labels: Labels;
  /** Where the answer is requested. Setting it starts, unless `manual` is there. */
  src: string;
  /** Defaults to POST where there is a body, else to GET. */
  method: string;
  /** Plain objects and arrays are sent as JSON, all else as it is. */
  body: StreamOptions["body"];
  /** Further options of `stream()`: headers, credentials, format, resume, … */
  options: StreamOptions;
  /** Whether only `start()` starts. */
  manual: boolean;
  /** Whether the text is shown as Markdown. */
  markdown: boolean;
  /** How many tokens are expected; 0 for unknown. Long answers are counted against it. */
  expectedTokens: number;
  get labels(): Labels;
  set labels(value: Partial<Labels> | null);
  readonly status: ElementStatus;
  /** All text so far. */
  readonly text: string;
  /** The JSON value so far, changed in place. */
  readonly value: any;
  readonly usage: Usage | null;
  /** Why it has failed. */
  readonly error: Error | null;
  /** Whether the end of the text is kept in view. */
  readonly following: boolean;
  /**
   * Requests `src` and shows the answer, instead of the one before.
   * @param body sent instead of the property `body`, and kept there
   * @returns the status that it ended with; rejected only where there is no `src`
   */
  start(body?: StreamOptions["body"]): Promise<ElementStatus>;
  /** The same request once more. */
  retry(): Promise<ElementStatus>;
  /**
   * Has the server stop the model. A stream without a URL of its own is ended by closing its connection.
   * @returns whether the server was told; one that refuses goes on, and the button can be pressed again
   */
  stop(): Promise<boolean>;
  /** Closes the connection. The text stays. */
  abort(): void;
  /** Closes the connection and empties the element. */
  reset(): void;
  /** Shows one delta of a stream that is read by somebody else. */
  push(delta: Delta): void;
  /** Says that the stream has failed. */
  fail(error: unknown): void;
  /** Writes at once what waits for the next frame. */
  flush(): void;
}

export interface ElementEventMap {
  "llm-status": CustomEvent<StatusDetail & { status: ElementStatus }>;
  "llm-delta": CustomEvent<Delta>;
  "llm-value": CustomEvent<{ value: any; delta: Delta }>;
  "llm-done": CustomEvent<{ text: string; value: any; reason: string | null; usage: Usage | null }>;
  "llm-error": CustomEvent<{ error: Error }>;
}

declare global {
  interface HTMLElementTagNameMap {
    "llm-stream": LLMStreamElement;
  }
  interface HTMLElementEventMap extends ElementEventMap {}
}
