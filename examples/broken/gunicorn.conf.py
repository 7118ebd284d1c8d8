"""The configuration of the broken app. Do not copy from here."""

import requests  # noqa: F401  asks some service where it is, in the original

worker_class = "gevent"
workers = 4
worker_connections = 50
preload_app = True
timeout = 0
graceful_timeout = 3
max_requests = 1000
