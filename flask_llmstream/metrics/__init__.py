"""Prometheus metrics of streams: what is counted, where it is kept, and how workers add it up.

:mod:`table` names the metrics, :mod:`meter` counts one stream, :mod:`tally` adds up one process,
:mod:`files` and :mod:`library` share it with the other workers.
"""
