/**
 * Reads streams of flask-llmstream: text, JSON and tool calls as they come, over fetch or EventSource.
 *
 *     for await (const delta of stream("/chat", { body: { question } })) {
 *       if (delta.type === "text") output.append(delta.text);
 *     }
 */
export function stream(url: string | URL, options?: StreamOptions): Run;

/** Wire formats that can be read. */
export type Format = "sse" | "ndjson" | "frames" | "text";

export type Status =
  /** Nothing was requested yet. */
  | "idle"
  | "connecting"
  | "streaming"
  /** The connection was lost, or the server is busy; the next attempt follows by itself. */
  | "reconnecting"
  /** The server has said all. */
  | "done"
  /** The error is thrown by the iteration, and in the detail of `onStatus`. */
  | "failed"
  /** By `abort()`, by `signal`, by `break`, or because the page was left. */
  | "aborted"
  /** By `stop()`. */
  | "stopped";

export interface StatusDetail {
  /** reconnecting: how many attempts there were since something last arrived, from 1. */
  attempt?: number;
  /** reconnecting: seconds until that attempt; unknown with an EventSource, which waits by itself. */
  delay?: number;
  /** reconnecting, failed: what has happened. */
  error?: unknown;
  /** done, stopped: why the model has stopped. */
  reason?: string | null;
  /** done, stopped: what the answer has cost. */
  usage?: Usage | null;
}

export interface StreamOptions {
  /** Defaults to POST where there is a body, else to GET. */
  method?: string;
  /** Plain objects and arrays are sent as JSON, all else as it is. */
  body?: BodyInit | Record<string, unknown> | readonly unknown[] | null;
  headers?: HeadersInit;
  /** Ends the stream as `abort()` does. */
  signal?: AbortSignal | null;
  /** Also sets `Accept`. Defaults to what the Content-Type of the answer says. */
  format?: Format;
  /** Whether to come back to a stream that broke off, or to a server that is busy. Defaults to true. */
  resume?: boolean;
  /** How often in a row, with nothing arriving between. Defaults to 5. */
  retries?: number;
  /** Called when the status changes. */
  onStatus?: (status: Status, detail: StatusDetail) => void;
  /**
   * Seconds without a single byte after which the connection counts as lost; heartbeats are bytes, so three of
   * their intervals are right. 0 waits for ever. Defaults to 45. An EventSource has none.
   */
  idleTimeout?: number;
  /** As for `fetch`; an EventSource sends cookies elsewhere with "include". */
  credentials?: RequestCredentials;
  /** Use the browser's own EventSource: a GET without headers, `sse` only. Defaults to false. */
  eventSource?: boolean;
  /** Whether an end without `done` or `failed` is an error. Defaults to true; `text` never has one. */
  expectedEnd?: boolean;
}

export interface Usage {
  input_tokens?: number;
  output_tokens?: number;
  reasoning_tokens?: number;
  cached_tokens?: number;
}

/** A change of a JSON value that is still being written; `path` is a JSON Pointer (RFC 6901). */
export type JsonDelta =
  | { path: string; op: "add" | "replace"; value: unknown }
  /** A text grows. */
  | { path: string; op: "append"; value: string }
  /** What stands at `path` is final. */
  | { path: string; op: "complete"; value?: unknown };

/** Of a stream with several channels: which one it belongs to. */
interface OfChannel {
  channel?: string;
}

export type Delta =
  | ({ type: "text"; text: string } & OfChannel)
  | ({ type: "reasoning"; text: string } & OfChannel)
  | ({ type: "tool"; index: number; id?: string; name?: string; arguments?: string } & OfChannel)
  | ({ type: "json" } & JsonDelta & OfChannel)
  | ({ type: "usage" } & Usage & OfChannel)
  | ({ type: "custom"; name: string; data: any } & OfChannel)
  /** An event of the app's own; a JSON object in its data is parsed. `resync` says how many were lost. */
  | ({ type: "event"; event: string; data: any } & OfChannel)
  /** The end of one channel. */
  | { type: "channel"; channel: string; end: "done"; reason?: string | null; usage?: Usage | null }
  | { type: "channel"; channel: string; end: "failed"; message: string; code: string; retryable: boolean }
  /** The end of the stream, and the last delta. */
  | { type: "done"; reason: string | null; usage: Usage | null };

/** What one channel has said so far. */
export interface Channel {
  text: string;
  value: any;
  usage: Usage | null;
  reason: string | null;
}

/**
 * One stream. Nothing is requested before it is iterated over or started.
 *
 * Iterating throws StreamFailed, StreamInterrupted, StreamRefused, StreamAborted, or a StreamError where the
 * data is damaged.
 */
export interface Run {
  readonly status: Status;
  /** Where the stream can be followed and stopped; null where it cannot. */
  readonly url: string | null;
  /** The id of the last event that has arrived, "" for none. */
  readonly lastEventId: string;
  /** All text so far, without that of channels. */
  readonly text: string;
  /** The JSON value so far, changed in place by each delta. */
  readonly value: any;
  readonly usage: Usage | null;
  /** Why the model has stopped: "stop", "length", "tool_calls", "cancelled", …; null before the end. */
  readonly reason: string | null;
  readonly channels: Record<string, Channel>;
  /** Sends the request, unless that was done, and reads to the end; what comes waits for the iteration. */
  start(): Run;
  /**
   * Has the server stop the model. What there was is still read, and then `done`.
   * @returns whether the server was told; where the stream has no URL the connection is closed instead.
   */
  stop(): Promise<boolean>;
  /** Closes the connection; the iteration throws StreamAborted. */
  abort(reason?: unknown): void;
  [Symbol.asyncIterator](): AsyncGenerator<Delta, void, void>;
}

/** All errors of this module have a code for programs, and say whether trying again may help. */
export class StreamError extends Error {
  constructor(message: string, code: string, retryable: boolean, more?: object);
  readonly code: string;
  readonly retryable: boolean;
}
/** The server said that the answer failed; the code is the server's. */
export class StreamFailed extends StreamError {}
/** The stream has ended without saying so, and could not be resumed; code "interrupted", or "lost" where it is gone. */
export class StreamInterrupted extends StreamError {}
/** The answer is not a stream; code "refused". */
export class StreamRefused extends StreamError {
  readonly status: number;
  readonly headers: Headers;
  /** Its first KB. */
  readonly body: string;
  /** Seconds, where the server has said so. */
  readonly retryAfter: number | null;
}
/** Given up on purpose; code "aborted", name "AbortError". */
export class StreamAborted extends StreamError {}

export interface SSEEvent {
  /** "message" where the event has no name. */
  type: string;
  data: string;
  lastEventId: string;
}

export interface SSEHandlers {
  onEvent?: (event: SSEEvent) => void;
  /** In milliseconds. */
  onRetry?: (retry: number) => void;
  onComment?: (text: string) => void;
  /** Where an earlier connection came to. */
  lastEventId?: string;
}

/** Parses an event stream as the WHATWG specification says, however its bytes are cut. */
export class SSEParser {
  constructor(handlers?: SSEHandlers);
  readonly lastEventId: string;
  feed(piece: string | Uint8Array): void;
  /** Forgets a block that no blank line has ended. */
  end(): void;
}

/** Returns a value after a change; objects and arrays are changed in place. */
export function applyDelta(value: any, delta: JsonDelta): any;
