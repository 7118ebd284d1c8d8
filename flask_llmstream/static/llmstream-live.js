// The page GET <prefix>/live, kept up to date by the stream GET <prefix>/live/events. Licence: MIT.
import { stream } from "./llmstream.js";

const BACK_AFTER = 2000;
const $ = (id) => document.getElementById(id);
const say = (text) => { if ($("status").textContent !== text) $("status").textContent = text; };
const seconds = (value, digits) => value.toFixed(digits) + " s";

// In the order of the heads, which the server writes.
const cells = (row) => [
  row.id, row.route, row.format, row.state, seconds(row.age, 1),
  row.first === null ? "none yet" : seconds(row.first, 2), row.pieces ?? "not counted", row.rate.toFixed(1), row.bytes,
  row.follows ? `follows ${row.follows}` : row.resumable ? "yes" : "no", row.followers, row.pid,
];
const workerCells = (worker) => [
  worker.pid, worker.streams, worker.rate.toFixed(1), worker.bytes,
  Object.entries(worker.states).map(([name, number]) => `${number} ${name}`).join(", "),
];

/** Write only what has changed, so that a selection or a screen reader's place survives. */
function fill(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((values, number) => {
    const row = body.rows[number] || body.insertRow();
    values.forEach((value, column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = row.appendChild(document.createElement(column ? "td" : "th"));
        if (!column) cell.scope = "row";
      }
      if (cell.textContent !== String(value)) cell.textContent = value;
    });
  });
}

function show(now) {
  const hidden = now.hidden ? `, of which ${now.hidden} are not listed` : "";
  $("sum").textContent = `${now.streams} running${hidden}; workers that have some: ${now.workers.length}`;
  fill($("streams").tBodies[0], now.rows.map(cells));
  fill($("workers").tBodies[0], now.workers.map(workerCells));
}

let run = null;
let paused = false;
let wake = () => {};

async function follow() {
  for (;;) {
    if (paused || document.hidden) {
      say(paused ? "Paused." : "Waiting to be looked at.");
      await new Promise((resolve) => { wake = resolve; });
      continue;
    }
    try {
      run = stream(document.body.dataset.events, { format: "sse", resume: false, idleTimeout: 15 });
      for await (const delta of run) {
        if (delta.type !== "event" || paused) continue;
        show(delta.data);
        say("Up to date.");
      }
    } catch (error) {
      if (paused || document.hidden) continue;
      say(error.status === 403 || error.status === 404
        ? "You may no longer see this." : "The connection was lost. Reconnecting…");
    }
    await new Promise((resolve) => { setTimeout(resolve, BACK_AFTER); });
  }
}

/** Nobody looks: the server need not work for it. */
function rest() {
  if (paused || document.hidden) run?.abort();
  else wake();
}

$("pause").hidden = false;
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").textContent = paused ? "Go on" : "Pause";
  rest();
});
document.addEventListener("visibilitychange", rest);
follow();
