"""What templates call, in what they write and in what is served there."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask, render_template_string
from jinja2 import DictLoader

import flask_llmstream
from flask_llmstream import LLMStream
from flask_llmstream.exceptions import ConfigurationError

VERSION = flask_llmstream.__version__
FOREVER = "public, max-age=31536000, immutable"


def make_app(**settings: Any) -> Flask:
    app = Flask("templates")
    LLMStream(app, **settings)
    return app


def rendered(template: str, app: Any = None, root: str = "", **context: Any) -> str:
    """Return a template's text, for a page of an app that is mounted at *root*."""
    with (app or make_app()).test_request_context("/page", environ_overrides={"SCRIPT_NAME": root}):
        return str(render_template_string(template, **context))


def test_scripts_load_the_element_by_its_version() -> None:
    tag = '<script type="module" src="/{}v' + VERSION + '/llmstream-element.js"></script>'
    call = "{{ llmstream_scripts() }}"
    assert rendered(call) == tag.format("llmstream/")
    assert rendered(call, make_app(url_prefix="/ai/text")) == tag.format("ai/text/")
    assert rendered(call, root="/shop") == tag.format("shop/llmstream/")
    urls = "{{ llmstream_url() }} {{ llmstream_url('vendor/purify.es.mjs') }}"
    assert rendered(urls).split() == [
        f"/llmstream/v{VERSION}/llmstream.js", f"/llmstream/v{VERSION}/vendor/purify.es.mjs"
    ]


def test_all_modules_of_a_page_are_of_one_version_and_may_be_kept() -> None:
    app = make_app()
    (url,) = re.findall('src="(.*?)"', rendered("{{ llmstream_scripts() }}", app))
    waiting, seen = [url], {}
    while waiting:
        url = waiting.pop()
        answer = app.test_client().get(url)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, FOREVER), url
        seen[url.rpartition("/")[2]] = answer.data
        for name in re.findall(r'(?:from|import\()\s*"\./(.*?)"', answer.data.decode()):
            if name.rpartition("/")[2] not in seen:
                waiting.append(url.rpartition("/")[0] + "/" + name)
    assert {"llmstream-element.js", "llmstream.js", "llmstream-markdown.js", "purify.es.mjs"} <= set(seen)
    # A page that was made by another version gets what there is, and asks again.
    other = app.test_client().get("/llmstream/v0.0.9/llmstream.js")
    assert other.data == seen["llmstream.js"]
    assert other.headers["Cache-Control"] == "no-cache"
    for name in ("v/llmstream.js", "v0.0.9/", "v0.0.9/v0.0.9/llmstream.js", "v0.0.9/../assets.py"):
        assert app.test_client().get("/llmstream/" + name).status_code == 404


@pytest.mark.parametrize("template, context, nonce", [
    ("{{ llmstream_scripts(nonce='a\"b') }}", {}, "a&#34;b"),
    ("{{ llmstream_scripts('abc') }}", {"csp_nonce": "not this"}, "abc"),
    ("{{ llmstream_scripts() }}", {"csp_nonce": "abc"}, "abc"),
    ("{{ llmstream_scripts() }}", {"csp_nonce": lambda: "abc"}, "abc"),
    ("{% set csp_nonce = 'abc' %}{{ llmstream_scripts() }}", {}, "abc"),
    ("{{ llmstream_scripts(nonce='') }}", {"csp_nonce": "abc"}, None),
    ("{{ llmstream_scripts() }}", {"csp_nonce": ""}, None),
])
def test_nonce_is_found(template: str, context: Any, nonce: Any) -> None:
    found = re.findall(r'nonce="(.*?)"', rendered(template, **context))
    assert found == ([] if nonce is None else [nonce])


def test_nonce_of_talisman_is_found() -> None:
    talisman = pytest.importorskip("flask_talisman")
    app = make_app()
    policy = {"default-src": "'self'", "script-src": "'self'"}
    nonce_in = {"content_security_policy_nonce_in": ["script-src"]}
    talisman.Talisman(app, content_security_policy=policy, force_https=False, **nonce_in)
    app.add_url_rule("/", "page", lambda: render_template_string("{{ llmstream_scripts() }}"))
    answer = app.test_client().get("/")
    (nonce,) = re.findall('nonce="(.*?)"', answer.data.decode())
    assert len(nonce) >= 16 and f"'nonce-{nonce}'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("call, expected", [
    ("llm_stream('/chat')", '<llm-stream src="/chat"></llm-stream>'),
    ("llm_stream()", "<llm-stream></llm-stream>"),
    (
        "llm_stream('/a?b=1&c=2', expected_tokens=800, markdown=True, manual=False, id=None, class='wide')",
        '<llm-stream src="/a?b=1&amp;c=2" expected-tokens="800" markdown class="wide"></llm-stream>',
    ),
    ("llm_stream('/chat', class_='x', aria_label='It\\'s', data_n=0)",
     '<llm-stream src="/chat" class="x" aria-label="It&#39;s" data-n="0"></llm-stream>'),
    ("llm_stream(evil, id=evil)",
     '<llm-stream src="&#34;&gt;&lt;b&gt;" id="&#34;&gt;&lt;b&gt;"></llm-stream>'),
])
def test_element_is_written_and_all_of_it_is_escaped(call: str, expected: str) -> None:
    assert rendered("{{ " + call + " }}", evil='"><b>') == expected
    unescaped = "{% autoescape false %}{{ " + call + " }}{% endautoescape %}"
    assert rendered(unescaped, evil='"><b>') == expected


@pytest.mark.parametrize("name", ["on click", "a=1", 'x"', "_", "", "é", "9", "a/b"])
def test_what_is_no_attribute_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of an attribute"):
        rendered("{{ llm_stream('/chat', **{name: '1'}) }}", name=name)


def test_without_a_prefix_there_is_nothing_to_load() -> None:
    app = make_app(url_prefix="")
    with pytest.raises(ConfigurationError, match="LLMSTREAM_URL_PREFIX is ''"):
        rendered("{{ llmstream_scripts() }}", app)
    assert rendered("{{ llm_stream('/chat') }}", app) == '<llm-stream src="/chat"></llm-stream>'


def test_an_app_that_uses_none_of_it_is_left_alone() -> None:
    app = make_app()
    assert "jinja_env" not in vars(app), "what the app says of Jinja later would have no effect"
    app.jinja_options = dict(app.jinja_options, variable_start_string="[[", variable_end_string="]]")
    assert rendered("[[ llm_stream() ]]", app) == "<llm-stream></llm-stream>"
    assert rendered("{{ llm_stream }}", llm_stream="of the view") == "of the view"


def test_macros_that_are_imported_with_context_have_it() -> None:
    app = make_app()
    app.jinja_loader = DictLoader({"parts.html": "{% macro foot() %}{{ llmstream_scripts() }}{% endmacro %}"})
    template = "{% from 'parts.html' import foot with context %}{{ foot() }}"
    assert rendered(template, app, csp_nonce="abc").endswith(' nonce="abc"></script>')
