"""The configuration of the fixed app."""

worker_class = "gevent"
workers = 4
worker_connections = 2000
timeout = 60
graceful_timeout = 30
max_requests = 1000
max_requests_jitter = 200
