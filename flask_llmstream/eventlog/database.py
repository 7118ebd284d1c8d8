"""One connection to an SQLite file that several processes write: opening, transactions, what goes wrong.

Decisions
    1. One connection per process, and one transaction at a time on it; on gevent in a native
       thread. More of them would only wait for the same lock of the file.
    2. Before each transaction the file is compared to the one that was opened: SQLite goes on
       writing, without a word, to a file that has been deleted.
    3. A connection that belongs to a parent process or to a deleted file is kept, not closed:
       closing could remove the write-ahead log under those who are using it.
    4. Nothing here needs more than SQLite 3.22.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Callable, List, Optional, Sequence, Tuple, TypeVar

from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import Runtime

__all__ = ["Database"]

T = TypeVar("T")

#: How often the change to a write-ahead log is tried while others are opening the file, too.
_TRIES = 50

#: Bytes above which the write-ahead log is cut again when it has been written back.
_LARGEST_WAL = 16 << 20

#: Bytes of the smallest page that SQLite knows.
_SMALLEST_DATABASE = 512

#: What SQLite says, or a part of it -> what to say.
_CAUSES = (
    ("disk is full", "the disk is full; make room on it"),
    ("locked", "another process held it locked for more than {timeout:g} s"),
    ("readonly", "it may only be read; give this process the right to write the file and its directory"),
    ("not a database", "the file is no SQLite database; move it away, or choose another path"),
    ("malformed", "the file is damaged; delete it: nothing is in it but running and recent streams"),
)

#: Connections and their threads that must not be collected as garbage.
_open: List[Any] = []


class _Unusable(Exception):
    """The file cannot be used, for a reason that SQLite does not know of."""


class Database:
    """The file at *path*, opened at the first transaction.

    :param name: what it is called in messages.
    :param version: number of the schema.
    :param schema: statements that make it in an empty file.
    :param timeout: seconds to wait for a lock.
    :param added: statements that make what has come to the schema since; they do nothing where it is there.
    """

    def __init__(
        self, path: str, name: str, version: int, schema: Sequence[str], timeout: float, runtime: Runtime,
        added: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._name = name
        self._version = version
        self._schema = schema
        self._added = added
        self._timeout = timeout
        self._call = runtime.in_turn()
        self._connection: Optional[sqlite3.Connection] = None
        self._file: Tuple[int, int] = (0, 0)
        #: Another number as soon as what transactions before have found may not count any more: the
        #: file is another one, or a transaction has failed.
        self.validity = 0
        self._closed = False

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *job* does, which sees one state of the file.

        :raises LogUnavailable: if the file cannot be used now.
        """
        return self._run("BEGIN", job)

    def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *job* does; all of its changes are made, or none.

        :raises LogUnavailable: if the file cannot be used now.
        """
        return self._run("BEGIN IMMEDIATE", job)

    def close(self) -> None:
        """Close the file; whoever comes late gets an answer, and leaves it closed."""
        self._closed = True
        self._call(self._close)
        self._call.close()

    def _run(self, begin: str, job: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result: T = self._call(lambda: self._transaction(begin, job))
        except (sqlite3.Error, OSError, _Unusable) as error:
            raise LogUnavailable(self._name, self._cause(error)) from error
        return result

    def _transaction(self, begin: str, job: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._current()
        try:
            connection.execute(begin)
            result = job(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            self.validity += 1
            # Some errors have rolled it back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError) and not _passes(error):
                self._close()
            raise
        finally:
            if self._closed:
                self._close()
        return result

    def _current(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None:
            try:
                found = os.stat(self.path)
                if (found.st_dev, found.st_ino) == self._file:
                    return connection
            except OSError:
                pass
            # Deleted, or another file by now. What is still open stays in _open.
            self._connection = None
        return self._opened()

    def _opened(self) -> sqlite3.Connection:
        _create(self.path)
        # Not later: who replaces the file meanwhile would be taken for the one that is opened, for ever.
        found = os.stat(self.path)
        # Any thread may use it, but only one at a time does.
        connection = sqlite3.connect(
            self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA journal_size_limit={_LARGEST_WAL}")
            self._make_schema(connection)
        except BaseException:
            connection.close()
            raise
        self._file = (found.st_dev, found.st_ino)
        self._connection = connection
        self.validity += 1
        _open.append((self, connection))
        return connection

    def _make_schema(self, connection: sqlite3.Connection) -> None:
        def version() -> int:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

        if version() == 0:
            connection.execute("BEGIN IMMEDIATE")
            try:
                if version() == 0:  # and not somebody else in the meantime
                    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                        raise _Unusable("the database belongs to another program; choose another path")
                    for statement in self._schema:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version={self._version}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        if version() != self._version:
            raise _Unusable(
                f"its schema has number {version()} and this version writes {self._version}; stop the"
                " workers of the other version and delete the file, or choose another path"
            )
        for statement in self._added:
            connection.execute(statement)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _open.remove((self, connection))
            connection.close()

    def _cause(self, error: BaseException) -> str:
        text = str(error)
        if isinstance(error, _Unusable):
            return text
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            return f"there is no directory {directory}; create it"
        if os.path.isdir(self.path):
            return "it is a directory; add the name of a file"
        if isinstance(error, PermissionError):
            return f"{_CAUSES[2][1]} ({error.strerror})"
        for part, cause in _CAUSES:
            if part in text:
                return cause.format(timeout=self._timeout)
        return f"{text or type(error).__name__}"


def _passes(error: sqlite3.DatabaseError) -> bool:
    """Whether the connection can still be used after *error*."""
    return any(part in str(error) for part in ("locked", "full"))


def _create(path: str) -> None:
    """Create the file, readable and writable for its owner only, if there is none."""
    # Not opened if it exists: closing a file drops the locks that the process holds on it.
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
    else:
        # SQLite takes what is shorter than a page for an empty database, and writes over it.
        if 0 < size < _SMALLEST_DATABASE:
            raise sqlite3.DatabaseError("file is not a database")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Change to a write-ahead log, which needs the file for itself for a moment."""
    for left in reversed(range(_TRIES)):
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or not left:
                raise
            # This waits for the others, which the change does not.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
        else:
            if mode != "wal":
                raise _Unusable("its file system cannot share memory between processes; use a local one")
            return
