"""Libraries that block a whole gevent worker: while one waits, no stream of the process moves.

They wait in C, where monkey patching does not reach. Each is looked for once in a process, when its
first stream begins.
"""

from __future__ import annotations

import logging
import sys
from typing import Callable, NamedTuple, Tuple

from flask_llmstream.runtime import current_runtime, per_process

__all__ = ["HAZARDS", "Hazard", "look_for_hazards"]

_log = logging.getLogger(__name__)


class Hazard(NamedTuple):
    """A library, and what to do about it."""

    #: Whether it is imported in this process, without what helps.
    is_there: Callable[[], bool]
    what: str
    remedy: str


def _psycopg2_blocks() -> bool:
    extensions = sys.modules.get("psycopg2.extensions")
    return extensions is not None and extensions.get_wait_callback() is None


def _mysqlclient_blocks() -> bool:
    # Its C part by name: PyMySQL, which cooperates, can pose as "MySQLdb".
    return "MySQLdb._mysql" in sys.modules


def _grpc_blocks() -> bool:
    return "grpc._cython.cygrpc" in sys.modules and "grpc.experimental.gevent" not in sys.modules


#: Those that are known.
HAZARDS: Tuple[Hazard, ...] = (
    Hazard(
        _psycopg2_blocks, "psycopg2",
        "call psycogreen.gevent.patch_psycopg() when the worker starts (pip install psycogreen; in"
        " gunicorn's post_fork, or where the app is made), or use psycopg 3",
    ),
    Hazard(
        _mysqlclient_blocks, "mysqlclient (MySQLdb)",
        "use PyMySQL, which cooperates (mysql+pymysql:// in SQLAlchemy)",
    ),
    Hazard(
        _grpc_blocks, "grpc",
        "call grpc.experimental.gevent.init_gevent() when the worker starts, before the first channel",
    ),
)


def _look() -> bool:
    if current_runtime().sees_blocking:
        for hazard in HAZARDS:
            if hazard.is_there():
                _log.warning(
                    "%s blocks all streams of this gevent worker whenever it waits for its server: %s",
                    hazard.what, hazard.remedy,
                )
    return True


#: Warn of what is imported in this process and blocks it; only the first call in a process looks.
look_for_hazards = per_process(_look)
