"""Which libraries an app has: those that block gevent, and what was imported too early for its patches."""

from __future__ import annotations

import glob
import re
import sys
import sysconfig
from importlib.util import find_spec
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from flask_llmstream.hazards import HAZARDS

__all__ = ["blocking_libraries", "is_patched", "late_holders", "missing_packages"]


class _Library(NamedTuple):
    """One that waits or computes in C; it is known by a module, and by its names in requirements."""

    what: str
    module: str
    distributions: Tuple[str, ...]
    remedy: str
    #: A package that shows that somebody has thought of it.
    helper: str = ""


_OWN_PROCESS = "call it in a process or thread pool of its own (gevent.get_hub().threadpool), or use gthread"
_LIBRARIES = (
    # These three are known to hazards, too, once they are imported.
    _Library("psycopg2", "", ("psycopg2", "psycopg2-binary"), HAZARDS[0].remedy, "psycogreen"),
    _Library("mysqlclient (MySQLdb)", "", ("mysqlclient",), HAZARDS[1].remedy),
    _Library("pyodbc", "pyodbc", ("pyodbc",), _OWN_PROCESS),
    _Library("cx_Oracle", "cx_Oracle", ("cx-oracle",), "use python-oracledb in its thin mode"),
    _Library(
        "mysql.connector, in C", "_mysql_connector", (), "connect with use_pure=True, or use PyMySQL",
    ),
    _Library("pylibmc", "pylibmc", ("pylibmc",), "use pymemcache, which cooperates"),
    _Library("confluent_kafka", "confluent_kafka", ("confluent-kafka",), _OWN_PROCESS),
    _Library("llama_cpp", "llama_cpp", ("llama-cpp-python",), "serve the model in a process of its own"),
    _Library("xllamacpp", "xllamacpp", (), "serve the model in a process of its own"),
)

#: What is often imported by name, and stays unpatched then.
_TAKEN = {
    "select": ("select",), "socket": ("create_connection", "getaddrinfo", "socket"),
    "ssl": ("SSLContext", "SSLSocket"), "subprocess": ("Popen",), "time": ("sleep",),
}
#: They hold originals on purpose, or belong to the command that looks.
_EXEMPT = frozenset(
    {"_pytest", "click", "coverage", "flask", "flask_llmstream", "gevent", "greenlet", "gunicorn",
     "pkg_resources", "pluggy", "psycogreen", "pytest", "socks", "werkzeug"}
)


def blocking_libraries() -> Iterator[Tuple[str, str, str]]:
    """Yield what each library is, what helps, and whether it is imported or required."""
    required = _requirements()
    found = set()
    for hazard in HAZARDS:
        if hazard.is_there():
            found.add(hazard.what)
            yield hazard.what, hazard.remedy, "it is imported"
    for library in _LIBRARIES:
        if library.what in found:
            continue
        if library.module in sys.modules:
            yield library.what, library.remedy, "it is imported"
        elif not _is_imported(library):
            for name in library.distributions:
                if name in required and library.helper not in required:
                    yield library.what, library.remedy, f"it is required in {required[name]}"
                    break


def _is_imported(library: _Library) -> bool:
    """Whether it is, and what helps was done: otherwise it would have been found."""
    return library.what.partition(" ")[0] in sys.modules


def _requirements() -> Dict[str, str]:
    """Return the packages of the requirements here, each with ``file:line``."""
    found: Dict[str, str] = {}
    for file in sorted(glob.glob("requirements*.txt") + glob.glob("requirements/*.txt")):
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                name = re.match(r"\s*([A-Za-z0-9._-]+)", line)
                if name is not None:
                    found.setdefault(re.sub(r"[-_.]+", "-", name.group(1)).lower(), f"{file}:{number}")
    return found


def is_patched() -> bool:
    """Whether gevent has patched this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def late_holders() -> List[str]:
    """Return who took something of the standard library before gevent patched it: ``module.name``."""
    saved: Dict[str, Any] = getattr(sys.modules.get("gevent.monkey"), "saved", {})
    originals = [
        saved[module][name] for module, names in _TAKEN.items() for name in names
        if name in saved.get(module, {})
    ]
    if not is_patched() or not originals:
        return []
    found = []
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in _EXEMPT or getattr(module, "__name__", name) != name:
            continue  # the second is an alias, as requests.packages has them
        if _is_standard(module):
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if any(value is original for original in originals):
                found.append(f"{name}.{attribute}")
    return found


def _is_standard(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    if not file:
        return getattr(module, "__name__", "") != "__main__"
    return str(file).startswith(sysconfig.get_paths()["stdlib"]) and "-packages" not in file


def missing_packages(event_log: str) -> Iterator[str]:
    """Yield what an event log needs and does not find.

    :param event_log: the URL of the setting.
    """
    if event_log.startswith(("redis:", "rediss:")) and find_spec("redis") is None:
        yield "redis"
