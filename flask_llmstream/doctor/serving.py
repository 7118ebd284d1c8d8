"""Finds out how the app is served, by a command line, a Procfile or uWSGI's configuration.

Decisions
    1. gunicorn is asked, since it knows best: see :mod:`flask_llmstream.doctor.gunicorn_facts`. Of uWSGI
       and waitress the options are read.
    2. A variable of a command line that has no value here, or what another command would print, gets "1":
       which port it is does not matter, and nothing is run to find out.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from flask_llmstream.doctor.facts import Deployment
from flask_llmstream.doctor.gunicorn_facts import look_at_gunicorn, look_at_gunicorn_command
from flask_llmstream.doctor.sources import shorten

__all__ = ["look_at_command", "look_at_deployment", "look_at_procfile", "look_at_uwsgi"]

_VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}|\$(\w+)|\$\(\(.*?\){2,}|\$\(.*?\)")
_SERVERS = ("gunicorn", "waitress-serve", "waitress", "uwsgi", "uwsgi-core", "flask")
#: Options of uWSGI by one letter, and long ones that take no value; for those that are judged.
_UWSGI_SHORT = {"p": "processes", "s": "socket", "w": "module", "T": "enable-threads", "M": "master"}
_UWSGI_FLAGS = {"enable-threads", "master", "disable-write-exception", "gevent-monkey-patch"}
#: Threads of waitress that nobody has set.
_WAITRESS_THREADS = 4


def look_at_deployment(
    gunicorn_config: Optional[str] = None,
    worker_class: Optional[str] = None,
    command: Optional[str] = None,
    procfile: Optional[str] = None,
    uwsgi: Optional[str] = None,
) -> Optional[Deployment]:
    """Return how the app is served; ``None`` where nothing says so.

    :raises OSError: a file cannot be read.
    :raises ValueError: two things are named that exclude each other, or one says nothing of a server.
    """
    named = {"--command": command, "--procfile": procfile, "--uwsgi": uwsgi}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1 or given and (gunicorn_config or worker_class):
        raise ValueError(
            f"{' and '.join(given)} cannot stand beside what else says how the app is served; name one thing:"
            " --command, --procfile, --uwsgi, or --gunicorn-config with --worker-class"
        )
    if command is not None:
        return look_at_command(command, "--command")
    if procfile is not None:
        return look_at_procfile(procfile)
    if uwsgi is not None:
        return look_at_uwsgi(uwsgi)
    return look_at_gunicorn(gunicorn_config, worker_class)


def look_at_procfile(file: str) -> Deployment:
    """Return what the line ``web:`` of a Procfile comes to."""
    for line in _text_of(file).splitlines():
        name, colon, command = line.partition(":")
        if colon and name.strip() == "web":
            return look_at_command(command, shorten(os.path.abspath(file)))
    raise ValueError(f"{file} has no line that begins with 'web:'; give the command itself: --command '...'")


def look_at_command(command: str, source: str) -> Deployment:
    """Return what a command line comes to."""
    try:
        words = shlex.split(_VARIABLE.sub(_value, command))
    except ValueError as exc:
        raise ValueError(f"{source} cannot be taken apart as a shell does: {exc}") from None
    # Others come first: exec, env, tracers, "flask db upgrade &&"; and "python -m".
    for server in (_SERVERS[:-1], _SERVERS[-1:]):
        for number, word in enumerate(words):
            name = os.path.basename(word)
            if name in server and (name != "flask" or "run" in words[number + 1:]):
                arguments = _up_to_the_next(words[number + 1:])
                if name == "gunicorn":
                    return look_at_gunicorn_command(arguments, source)
                if name.startswith("waitress"):
                    return _waitress(arguments, source)
                if name.startswith("uwsgi"):
                    return _uwsgi(list(_uwsgi_arguments(arguments)), source)
                return Deployment(source, "threads", server="flask run", threads=1000)
    raise ValueError(
        f"{source} starts none of gunicorn, uwsgi, waitress-serve and flask run, and no other server is known"
    )


def look_at_uwsgi(file: str) -> Deployment:
    """Return what a configuration of uWSGI in the form of an ini file comes to."""
    return _uwsgi(list(_ini(file)), shorten(os.path.abspath(file)))


def _value(match: Any) -> str:
    return os.environ.get(match.group(1) or match.group(3) or "") or match.group(2) or "1"


def _up_to_the_next(words: Sequence[str]) -> List[str]:
    """Return the words of one command."""
    ends = [number for number, word in enumerate(words) if word in ("&&", "||", ";", "|", "&")]
    return list(words[: ends[0]] if ends else words)


def _waitress(arguments: Sequence[str], source: str) -> Deployment:
    options: Dict[str, str] = {}
    for word, after in zip(arguments, [*arguments[1:], ""]):
        if word.startswith("--"):
            name, is_set, value = word[2:].partition("=")
            options[name] = value if is_set else after
    threads = _number(options.get("threads"), _WAITRESS_THREADS)
    return Deployment(source, "threads", server="waitress", threads=threads, options=tuple(options.items()))


def _uwsgi(options: List[Tuple[str, str]], source: str) -> Deployment:
    last = dict(options)
    processes = max(_number(last.get(name), 1) for name in ("processes", "workers"))
    gevent = _number(last.get("gevent"), 0)
    threads = _number(last.get("threads"), 1)
    kept = tuple((name, value) for name, value in options if value.lower() not in ("0", "off", "false", "no"))
    return Deployment(
        source, "gevent" if gevent else "threads", server="uWSGI", workers=processes, threads=threads,
        worker_connections=gevent, patched="gevent-monkey-patch" in dict(kept), options=kept,
    )


def _ini(file: str) -> Iterator[Tuple[str, str]]:
    """Yield the options of the section ``[uwsgi]``; a name may be there more than once."""
    section, found = "", False
    for line in _text_of(file).splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
            found = found or section == "uwsgi"
        elif section == "uwsgi" and line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()
    if not found:
        raise ValueError(
            f"{file} has no section [uwsgi]; of other forms than ini give the options: --command 'uwsgi ...'"
        )


def _uwsgi_arguments(arguments: Sequence[str]) -> Iterator[Tuple[str, str]]:
    """Yield the options of a command line, and of the ini files that it names."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word.endswith(".ini") and not word.startswith("-"):
            yield from _ini(word)
            continue
        if word.startswith("--"):
            name, is_set, value = word[2:].partition("=")
        elif word.startswith("-") and len(word) > 1:
            name, value = _UWSGI_SHORT.get(word[1], word[1]), word[2:]
            is_set = "=" if value else ""
        else:
            continue
        if not is_set and name not in _UWSGI_FLAGS and words and not words[0].startswith("-"):
            value = words.pop(0)
        if name in ("ini", "i"):
            yield from _ini(value)
        else:
            yield name, value


def _text_of(file: str) -> str:
    with open(file, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def _number(text: Optional[str], otherwise: int) -> int:
    """Return the number that an option has; *otherwise* where it has none that can be read."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else otherwise
