"""gunicorn for streams: ``gunicorn -c gunicorn.conf.py yourmodule:app``

Everything here can be changed from outside: by the variables below, by ``GUNICORN_CMD_ARGS``, or
by options on the command line, which win over this file.

Import nothing here that opens sockets (requests, your app): the worker patches the standard
library only after this file was read.
"""

import os

# on_starting refuses at the start what cannot work; worker_int and worker_exit end open streams with a
# word when the worker is interrupted, or its master is killed. SIGTERM, SIGHUP and max_requests need no
# hook. child_exit is for metrics where PROMETHEUS_MULTIPROC_DIR is set, and does nothing elsewhere.
from flask_llmstream.gunicorn import (  # noqa: F401
    check_streaming,
    child_exit,
    on_starting,
    worker_exit,
    worker_int,
)

bind = os.environ.get("LLMSTREAM_BIND", "127.0.0.1:" + os.environ.get("PORT", "8000"))

# One greenlet per stream. With gthread every open stream holds a thread, with sync a whole worker.
worker_class = os.environ.get("LLMSTREAM_WORKER_CLASS", "gevent")
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))

# A stream is a connection for as long as it lasts, so this is the number of streams per worker.
worker_connections = 2000

# With gevent this is no limit for a stream, but for code that blocks the worker as a whole.
timeout = 60

# What open streams get to end in after SIGTERM or SIGHUP. gunicorn kills what is left then, without
# a single `finally`; so what is still open 3 seconds before is told `failed: shutdown` and ended.
# Let your supervisor wait longer than this (systemd: TimeoutStopSec).
graceful_timeout = 30

# Preloading would import the app, and with it ssl and urllib3, before gevent patches them. If
# you need it, let `from gevent import monkey; monkey.patch_all()` be the first lines of this file.
preload_app = False

# No max_requests: a worker that is recycled has to end its long streams. If you need it, for an app
# that leaks, they end as at SIGTERM; spread it with max_requests_jitter.

# The worker's heartbeat is a file; on a disk it can stall together with the disk.
if os.path.isdir("/dev/shm"):
    worker_tmp_dir = "/dev/shm"

# "-" is standard output. A stream is logged when it ends.
accesslog = os.environ.get("LLMSTREAM_ACCESS_LOG") or None

check_streaming(globals())
