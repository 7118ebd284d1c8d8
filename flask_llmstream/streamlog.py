"""What the log says of streams: the id on every line, and one line for each stream at its end.

Every line about one stream begins with ``stream <id>`` and has the id as the attribute ``stream_id`` of its
record, too. With the setting ``log_streams`` the logger ``flask_llmstream.streams`` gets a line when a
stream has ended, in logfmt, with the same fields as ``record.llmstream``.

Decisions
    1. The id is put on the record by a filter of the logger: who logs need not think of it, and what is
       not logged costs nothing.
    2. Whatever is not plain is written as a JSON string: a name with a line end in it cannot begin a line
       of its own.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any, Mapping, Optional

__all__ = ["log_end", "logfmt", "stream_logger"]

#: Gets the line at the end of each stream.
LOGGER = "flask_llmstream.streams"

_PLAIN = re.compile(r"[A-Za-z0-9_.:/+@%<>-]+")
#: Characters of a name that are kept.
_LONGEST = 200


class _WithId(logging.Filter):
    """Puts the id that a message begins with on its record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let *record* pass, in any case."""
        args = record.args
        known = isinstance(args, tuple) and args and str(record.msg).startswith("stream %s")
        # Always there, so that a formatter may name it.
        record.stream_id = str(args[0]) if known else getattr(record, "stream_id", "")  # type: ignore
        return True


_with_id = _WithId()


def stream_logger(name: str = "flask_llmstream.stream") -> logging.Logger:
    """Return the logger called *name*, whose records carry ``stream_id``.

    :param name: defaults to that of the streams themselves.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_with_id)  # does nothing where it has been added
    return logger


def logfmt(fields: Mapping[str, Any]) -> str:
    """Return *fields* as ``name=value`` with a space between; what is ``None`` is left out."""
    return " ".join(f"{name}={_written(value)}" for name, value in fields.items() if value is not None)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)[:_LONGEST]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def log_end(fields: Mapping[str, Any], logger: Optional[logging.Logger] = None) -> None:
    """Write the line of a stream that has ended.

    :param fields: what is known of it; the first is ``stream``, its id.
    :param logger: defaults to ``flask_llmstream.streams``.
    """
    logger = logging.getLogger(LOGGER) if logger is None else logger
    extra = {"llmstream": dict(fields), "stream_id": fields.get("stream", "")}
    # As an argument: what a name says is no format.
    logger.info("%s", logfmt(fields), extra=extra)
