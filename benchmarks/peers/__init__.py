"""The same work done by what people would move to, each server at its own work, in turns.

Decisions
    1. Each peer runs as its documentation recommends, in an environment of its own with pinned
       versions, with one worker process and no access log, pinned to one core; the client has another.
    2. What counts is the CPU of all processes and threads of a server, from the kernel. Memory is PSS.
    3. Events are due at moments that client and server both know, so that a delay is what a user would
       see, and a server that falls behind cannot hide it by asking for less.
    4. The client is one loop that never sleeps: to wake it would be charged to whoever sends. The upstream
       of the relays lives in the same loop, so that it costs no other process a turn.
    5. Each round gives each server its turn, in another order each time.
    6. The bare Flask app is there twice. What differs between these two is the noise.
"""
