"""An app with libraries that block a gevent worker; ``REMEDY`` says whether what helps was done."""

from __future__ import annotations

import logging
import os
import sys
from types import ModuleType
from typing import Any, Iterator

import grpc
import psycopg2
from flask import Flask, request

from flask_llmstream import LLMStream, stream

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

if os.environ.get("REMEDY"):
    import grpc.experimental.gevent
    import psycogreen.gevent

    psycogreen.gevent.patch_psycopg()
    grpc.experimental.gevent.init_gevent()
else:
    # mysqlclient has no wheel for Linux. What is looked for is the name of its C part.
    sys.modules["MySQLdb._mysql"] = ModuleType("MySQLdb._mysql")

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0, status_hold=0.0)


@app.route("/stream")
@stream
def own() -> Iterator[str]:
    yield "one"


@app.route("/connect")
def connect() -> Any:
    """Wait for a database that does not answer."""
    try:
        psycopg2.connect(host="127.0.0.1", port=int(request.args["port"]), dbname="none", connect_timeout=20)
    except psycopg2.OperationalError as error:
        return str(error)
    return "connected"
