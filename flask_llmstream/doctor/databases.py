"""The connection pools that an app has: of Flask-SQLAlchemy 2 and 3, and of sessions of its own."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, Tuple

from flask_llmstream.doctor.facts import Pool

__all__ = ["has_sqlalchemy", "look_at_pools"]


def has_sqlalchemy(app: Any) -> bool:
    """Whether the app has a session that ``LLMSTREAM_RELEASE=True`` could give back."""
    return _extension(app) is not None


def look_at_pools(app: Any, names: Iterable[Dict[str, Any]]) -> Tuple[Pool, ...]:
    """Return the pools that have a limit; nothing is connected to.

    :param names: what the names of the views that stream mean, where sessions of the app's own are.
    """
    found: Dict[int, Pool] = {}
    engines = list(_of_extension(app)) + [each for scope in names for each in _of_sessions(scope)]
    for name, engine in engines:
        pool: Any = getattr(engine, "pool", None)
        if hasattr(pool, "size") and hasattr(pool, "_max_overflow") and pool._max_overflow >= 0:
            found.setdefault(id(engine), Pool(name, pool.size() + pool._max_overflow))
    return tuple(found.values())


def _extension(app: Any) -> Any:
    held = app.extensions.get("sqlalchemy")
    # Flask-SQLAlchemy 3 registers itself, version 2 an object that knows it.
    extension = held if hasattr(held, "session") else getattr(held, "db", None)
    return extension if hasattr(extension, "session") else None


def _of_extension(app: Any) -> Iterator[Tuple[str, Any]]:
    extension = _extension(app)
    if extension is None:
        return
    with app.app_context():
        binds = [None] + list(app.config.get("SQLALCHEMY_BINDS") or {})
        for bind in binds:
            try:
                if hasattr(extension, "engines"):
                    engine = extension.engines[bind]
                else:
                    engine = extension.get_engine(app, bind)
            except Exception:  # no such database, or its driver is not there
                continue
            yield f"the database {bind!r}" if bind else "the database", engine


def _of_sessions(names: Dict[str, Any]) -> Iterator[Tuple[str, Any]]:
    for name, value in names.items():
        if type(value).__name__ == "scoped_session":
            engine = getattr(getattr(value, "session_factory", None), "kw", {}).get("bind")
            if engine is not None:
                yield f"the database of {name}", engine
