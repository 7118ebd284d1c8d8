"""The running streams of all workers of a machine, while somebody looks.

Who looks touches a file once a second; workers that have streams see that, and write what they do into a
file of their own beside it.

Decisions
    1. A worker looks for the first file once a second, and only while it has streams. Where nobody looks,
       that is all that is ever done.
    2. What a worker has written and not renewed is old after some seconds, whatever became of the worker.
       Nobody has to clean up; who looks removes what belongs to nobody.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any, Dict, Iterator, List

from flask_llmstream import current
from flask_llmstream.folders import app_folder
from flask_llmstream.liverows import MOST_ROWS, rows_of
from flask_llmstream.ticker import current_ticker

__all__ = ["LiveTable"]

_log = logging.getLogger(__name__)

#: Seconds between looks, and after which a look of somebody and what a worker has written are old.
_PAUSE, _OLD = 1.0, 5.0
#: Seconds after which a file goes, though there is a process of that number.
_FORGOTTEN = 60.0
#: The same numbers are not made again before so many seconds.
_FRESH = 0.9
#: What is said of a worker as a whole.
_TOTALS = ("pid", "streams", "rate", "bytes", "states")


class LiveTable:
    """The running streams of one app.

    :param app: the Flask app.
    :param shared_dir: the setting.
    :raises RuntimeError: as :func:`~flask_llmstream.folders.app_folder`.
    """

    def __init__(self, app: Any, shared_dir: str) -> None:
        self._app = app
        self._folder = app_folder(app, shared_dir, "live")
        self._watched = os.path.join(self._folder, "watched")
        #: The process in which the ticker looks after this.
        self._pid = 0
        self._own: Dict[str, Any] = {}
        self._made_at = 0.0

    # -- the worker whose streams are shown ---------------------------------------------------

    def begin(self) -> None:
        """Take note that a stream begins; called in its request."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            ticker = current_ticker()
            ticker.schedule(self, ticker.now() + _PAUSE)

    def tick(self, now: float) -> float:
        """Write what this worker does, if somebody looks; called by the ticker."""
        path = os.path.join(self._folder, f"{os.getpid()}.json")
        try:
            if not current.streams():
                self._pid = 0
                self._remove(path)
                if not current.streams():  # on threads one may have begun since
                    return float("inf")
                self._pid = os.getpid()
            elif self._is_watched():
                aside = path + ".new"
                with open(aside, "w", encoding="utf-8") as file:
                    json.dump(self._mine(), file)
                os.replace(aside, path)
        except OSError as error:
            _log.warning("the live page does not show this worker: %s", error)
            return now + _FORGOTTEN
        return now + _PAUSE

    def _is_watched(self) -> bool:
        try:
            return abs(time.time() - os.stat(self._watched).st_mtime) < _OLD
        except FileNotFoundError:
            return False

    def _mine(self) -> Dict[str, Any]:
        """Return what this process does, made anew if that was not done just now."""
        at = time.monotonic()
        if self._own.get("pid") != os.getpid() or at - self._made_at >= _FRESH:
            self._own, self._made_at = rows_of(self._app), at
        return self._own

    # -- who looks ----------------------------------------------------------------------------

    def look(self) -> Dict[str, Any]:
        """Return what all workers do, and have them write it for the next look.

        :raises OSError: the folder cannot be used.
        """
        with open(self._watched, "a"):
            os.utime(self._watched)
        workers = [self._mine(), *self._others()]
        workers = sorted((each for each in workers if each["streams"]), key=lambda each: int(each["pid"]))
        followers: Dict[str, int] = {}
        for worker in workers:
            for id, number in worker["followers"].items():
                followers[id] = followers.get(id, 0) + number
        rows = [dict(row, followers=followers.get(row["id"], 0)) for each in workers for row in each["rows"]]
        rows.sort(key=lambda row: -row["age"])
        streams = sum(each["streams"] for each in workers)
        totals = [{key: each[key] for key in _TOTALS} for each in workers]
        rows = rows[:MOST_ROWS]
        return {"streams": streams, "hidden": streams - len(rows), "workers": totals, "rows": rows}

    def _others(self) -> Iterator[Dict[str, Any]]:
        for name in self._names():
            path = os.path.join(self._folder, name)
            pid = int(name[:-5])
            try:
                age = abs(time.time() - os.stat(path).st_mtime)
                if not _is_alive(pid) or age > _FORGOTTEN:
                    self._remove(path)
                elif age < _OLD and pid != os.getpid():
                    with open(path, encoding="utf-8") as file:
                        yield json.load(file)
            except (FileNotFoundError, ValueError):
                continue  # gone while we looked

    def _names(self) -> List[str]:
        return [name for name in os.listdir(self._folder) if name.endswith(".json") and name[:-5].isdigit()]

    def _remove(self, path: str) -> None:
        try:
            os.remove(path)
        except FileNotFoundError:
            pass


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True
