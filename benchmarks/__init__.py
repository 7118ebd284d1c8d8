"""What flask-llmstream costs beside a bare Flask generator, on the same gunicorn gevent worker.

Run it with ``make bench`` or ``python -m benchmarks``. Everything is measured side by side in one
run and told as a ratio; absolute figures belong to the machine that they were measured on.

What the same work costs on other servers is the part of :mod:`benchmarks.peers`.

Decisions
    1. CPU time, not wall time: it hardly depends on what else the machine does. It is read from
       the kernel, for the server's worker alone, in nanoseconds; ticks of 10 ms would be too coarse.
    2. The bare generator runs twice, in two servers: what differs between these two is the noise
       of the run, and is printed beside every ratio.
    3. Contenders take turns, in another order each round; a figure is the median of the rounds.
    4. Worker and clients are pinned to different cores where there are two.
    5. The bare generator yields text that was formatted beforehand, the cheapest there is; ours
       is given tokens and has everything switched on.
"""
