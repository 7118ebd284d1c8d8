import type { Delta, Status, StreamOptions, Usage } from "./llmstream.js";

/**
 * Reads a stream of flask-llmstream as the state of a component, in React 18 and 19.
 *
 *     const { text, busy, start, stop } = useLLMStream("/chat");
 *     return <button onClick={() => start({ question })}>Ask</button>;
 *
 * Nothing is requested before `start()`, or before the component is there where `immediate` is set. A component
 * that goes away aborts what it reads. However fast text comes, a component is rendered once in an animation frame.
 */
export function useLLMStream<Json = unknown>(
  url: string | URL,
  options?: UseLLMStreamOptions<Json>,
): UseLLMStream<Json>;

/** May be another object each time; what was given last counts, from the next `start()` on. */
export interface UseLLMStreamOptions<Json = unknown> extends StreamOptions {
  /** Start when the component appears, and again when `url` changes. Defaults to false. */
  immediate?: boolean;
  /** Called with each delta as it comes. What it throws ends the stream as failed. */
  onDelta?: (delta: Delta) => void;
  /** Called once at the end of each start, however it came. */
  onEnd?: (state: LLMStreamState<Json>) => void;
}

export interface LLMStreamState<Json = unknown> {
  readonly status: Status;
  /** Whether something may still come: connecting, streaming or reconnecting. */
  readonly busy: boolean;
  /** All text so far. */
  readonly text: string;
  readonly reasoning: string;
  /** The JSON so far, of a structured stream: what is still being written is there in part. */
  readonly json: Json | undefined;
  readonly usage: Usage | null;
  /** Why the model has stopped: "stop", "length", "cancelled", …; null before the end. */
  readonly reason: string | null;
  /** Of a stream with several channels: what each has said. */
  readonly channels: Readonly<Record<string, LLMStreamChannel>>;
  /** What has failed; null in any other status. A `StreamError` where it was the stream. */
  readonly error: Error | null;
  /** Where the stream can be followed and stopped; null where it cannot. */
  readonly url: string | null;
}

export interface LLMStreamChannel {
  readonly text: string;
  readonly json: any;
  readonly usage: Usage | null;
  readonly reason: string | null;
}

/** The three functions are the same ones in every render. */
export interface UseLLMStream<Json = unknown> extends LLMStreamState<Json> {
  /**
   * Begins a stream and forgets the one before, which is aborted if it still runs.
   * @param body as the option of that name; defaults to it.
   * @param options for this time, above those of the hook.
   * @returns the state at the end, whatever that is; it never rejects.
   */
  start(body?: unknown, options?: UseLLMStreamOptions<Json>): Promise<LLMStreamState<Json>>;
  /**
   * Has the server stop the model; what there was stays, and the status becomes "stopped".
   * @returns whether the server was told; where the stream has no URL the connection is closed instead.
   */
  stop(): Promise<boolean>;
  /** Aborts what runs and forgets what there was. */
  reset(): void;
}
