"""Read a stream from plain synchronous Python."""

from __future__ import annotations

from flask_llmstream.client.sseclient_py import sse_client
from flask_llmstream.client.streamclient import StreamClient

__all__ = ["StreamClient", "sse_client"]
