// Node's own http module. The port is the first argument, the tokens are JSON in BENCHMARK_TOKENS.

import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const TOKENS = JSON.parse(process.env.BENCHMARK_TOKENS);

const event = (number) => `data: ${JSON.stringify({ text: TOKENS[number % TOKENS.length] })}\n\n`;

// The clock that all processes share, in milliseconds.
const now = () => Number(process.hrtime.bigint()) / 1e6;

const views = {
    // Stream at a steady rate for ever.
    "/steady": async (query, response) => {
        const [start, rate] = query.get("clock").split(",").map(Number);
        for (let number = 0; !response.destroyed; number++) {
            // Timers are whole milliseconds, rounded down: an event would be early.
            await sleep(Math.max(0, Math.ceil((start + number / rate) * 1000 - now())));
            await write(response, event(number));
        }
    },
    // Stream as fast as possible.
    "/hot": async (query, response) => {
        const count = Number(query.get("count"));
        for (let number = 0; number < count && !response.destroyed; number++) {
            await write(response, event(number));
        }
        response.end();
    },
    // Send one event and go silent.
    "/idle": async (query, response) => {
        response.write(event(0));
    },
};

async function write(response, data) {
    if (!response.write(data) && !response.destroyed) {
        await new Promise((resume) => {
            response.once("drain", resume);
            response.once("close", resume);
        });
    }
}

createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://localhost");
    if (!views[pathname]) {
        response.writeHead(404).end();
        return;
    }
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
    response.flushHeaders();
    views[pathname](searchParams, response);
}).listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 2048 });
