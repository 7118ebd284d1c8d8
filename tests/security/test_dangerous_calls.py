"""The package calls nothing that turns data into code, opens a shell, weakens TLS, or leaves files to others.

Each exception stands below with its reason, and one that is not needed any more is a failure, too.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, Iterator, Set, Tuple

import flask_llmstream

PACKAGE = Path(flask_llmstream.__file__).resolve().parent

#: Modules that are for nothing else.
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "yaml", "xml", "code", "codeop", "pty"}
#: Functions by their name, whatever they are called on.
CALLS = {
    "eval", "exec", "compile", "__import__", "system", "popen", "mktemp", "execfile", "urlopen", "extractall",
    "_create_unverified_context", "disable_warnings", "chmod", "umask", "getoutput", "fork", "load_module",
}
#: Others of that name.
NAMESAKES = {("re", "compile"), ("platform", "system")}
#: Keywords with the values that make a call dangerous.
KEYWORDS = {("shell", True), ("verify", False), ("check_hostname", False), ("debug", True)}
#: Names that must not be used at all.
NAMES = {"CERT_NONE", "PROTOCOL_SSLv23", "md5", "sha1"}

#: (module, what) -> why it is all right.
ALLOWED: Dict[Tuple[str, str], str] = {
    ("doctor/connecting.py", "CERT_NONE"): "flask-llmstream doctor -k, which says so; nothing secret is sent",
    ("templating.py", "Markup"): "a constant tag, and names of attributes that match a pattern of letters",
}


def found_in(path: Path) -> Iterator[Tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [each.name.split(".")[0] for each in node.names]
            yield from ((name, line) for name in names if name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield str(node.module), line
            yield from ((each.name, line) for each in node.names if each.name in NAMES | CALLS - {"compile"})
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CALLS and not _is_harmless(node.func):
                yield name, line
            if name == "Markup" and not all(_is_text(each) for each in node.args):
                yield name, line
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if isinstance(value, bool) and (keyword.arg, value) in KEYWORDS:
                    yield f"{keyword.arg}={value}", line
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node.attr, line
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id, line


def _is_text(node: ast.AST) -> bool:
    """Whether *node* is a text that stands in the source; what format() puts into it is escaped."""
    return isinstance(getattr(node, "value", getattr(node, "s", None)), str)


def _is_harmless(func: ast.AST) -> bool:
    return isinstance(func, ast.Attribute) and (getattr(func.value, "id", ""), func.attr) in NAMESAKES


def test_package_calls_nothing_dangerous() -> None:
    met: Set[Tuple[str, str]] = set()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        for what, line in found_in(path):
            met.add((module, what))
            if (module, what) not in ALLOWED:
                wrong.append(f"{module}:{line}: {what}")
    assert not wrong, "\n".join(wrong)
    assert met == set(ALLOWED), f"not needed any more: {set(ALLOWED) - met}"


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text(
        "import pickle, os.path\nfrom marshal import loads\nfrom os import system\n"
        "eval('1')\nre.compile('a')\nrequests.get('u', verify=False)\nrun(shell=True)\nssl.CERT_NONE\n"
        "tempfile.mktemp()\ncompile('1', '', 'eval')\nMarkup('<b>')\nMarkup(text)\n"
    )
    assert sorted(what for what, _ in found_in(source)) == [
        "CERT_NONE", "Markup", "compile", "eval", "marshal", "mktemp", "pickle", "shell=True", "system",
        "verify=False",
    ]
