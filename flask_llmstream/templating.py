"""What templates may call: the tag that loads the element, the element itself, and the address of a file.

Decisions
    1. Given to templates by a context processor. ``app.jinja_env`` is made at its first use, and what the app
       says of it later (``jinja_options``, ``TEMPLATES_AUTO_RELOAD``) would have no effect.
    2. The version stands in the path, not behind a question mark: modules name each other relative to
       their own address, so all of them are of one version, loaded once, and may be kept for ever.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Optional, TypeVar

import jinja2
from flask import current_app, url_for
from markupsafe import Markup

import flask_llmstream
from flask_llmstream.exceptions import ConfigurationError

__all__ = ["llm_stream", "llmstream_scripts", "llmstream_url", "template_names"]

F = TypeVar("F")

#: Jinja before 3.0 has another name for it.
_decorator = "pass_context" if hasattr(jinja2, "pass_context") else "contextfunction"
_with_context: Callable[[F], F] = getattr(jinja2, _decorator)

_ATTRIBUTE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def template_names() -> Dict[str, Any]:
    """Return what templates find; a context processor."""
    return {"llmstream_scripts": llmstream_scripts, "llm_stream": llm_stream, "llmstream_url": llmstream_url}


def llmstream_url(name: str = "llmstream.js") -> str:
    """Return the address of one of the files for browsers, under which it may be kept for ever.

    :param name: its path in the folder ``static``. Defaults to the core module.
    :raises ConfigurationError: where ``LLMSTREAM_URL_PREFIX`` is empty, so that none is served.
    """
    if "llmstream" not in current_app.blueprints:
        expected = "a path such as '/llmstream', for pages to load the element from"
        raise ConfigurationError("LLMSTREAM_URL_PREFIX", "", expected)
    return url_for("llmstream.asset", name=f"v{flask_llmstream.__version__}/{name}")


@_with_context
def llmstream_scripts(context: Any, nonce: Optional[str] = None) -> Markup:
    """Return the tag that loads ``<llm-stream>``; once a page, anywhere in it.

    It is defined when the page is parsed, before ``DOMContentLoaded``.

    :param nonce: of the page's Content-Security-Policy. Defaults to ``csp_nonce`` of the template, called
        where it can be: flask-talisman's, or one of your own. Without either there is none.
    """
    if nonce is None:
        found = context.get("csp_nonce")
        nonce = found() if callable(found) else found
    tag = '<script type="module" src="{}"{}></script>'
    attributes = _attributes({"nonce": nonce or None})
    return Markup(tag).format(llmstream_url("llmstream-element.js"), attributes)


def llm_stream(src: Optional[str] = None, **attributes: Any) -> Markup:
    """Return an ``<llm-stream>`` element; all values are escaped.

    :param src: where the answer is requested.
    :param attributes: of the element, with underscores for hyphens: ``expected_tokens=800``. ``True`` writes
        one without a value, ``None`` and ``False`` leave it out.
    :raises ValueError: for what cannot be the name of an attribute.
    """
    return Markup("<llm-stream{}></llm-stream>").format(_attributes(dict({"src": src}, **attributes)))


def _attributes(values: Dict[str, Any]) -> Markup:
    written = Markup("")
    for key, value in values.items():
        # "class_", as Python writes it.
        name = key.rstrip("_").replace("_", "-").lower()
        if not _ATTRIBUTE.fullmatch(name):
            raise ValueError(f"{key!r} is no name of an attribute; expected letters, digits and underscores")
        if value is True:
            written += Markup(" " + name)
        elif value is not None and value is not False:
            written += Markup(' {}="{}"').format(name, value)
    return written
