"""WSGI apps that are not Flask's, each with the same two routes, behind one dispatcher."""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, Iterator, List
from urllib.parse import parse_qs

import requests
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_llmstream import LLMStreamMiddleware

notes: List[str] = []


def relay(url: str, name: str) -> Iterator[bytes]:
    try:
        response = requests.post(url, json={"stream": True}, stream=True)
        for line in response.iter_lines(chunk_size=1):
            if line:
                yield line + b"\n\n"
    finally:
        notes.append(name)


def with_bottle() -> Any:
    import bottle

    app = bottle.Bottle()

    @app.route("/relay")
    def view() -> Any:
        bottle.response.content_type = "text/event-stream"
        return relay(bottle.request.query.url, "bottle")

    @app.route("/hello")
    def hello() -> str:
        return "hello"

    return app


def with_django() -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    def view(request: Any) -> Any:
        return StreamingHttpResponse(
            relay(request.GET["url"], "django"), content_type="text/event-stream"
        )

    def hello(request: Any) -> Any:
        return HttpResponse("hello")

    class urls:
        urlpatterns = [path("relay", view), path("hello", hello)]

    settings.configure(ROOT_URLCONF=urls, SECRET_KEY="none", ALLOWED_HOSTS=["*"])
    django.setup()
    return get_wsgi_application()


def with_pyramid() -> Any:
    from pyramid.config import Configurator
    from pyramid.response import Response

    def view(request: Any) -> Any:
        body = relay(request.params["url"], "pyramid")
        return Response(app_iter=body, content_type="text/event-stream", charset="utf-8")

    def hello(request: Any) -> Any:
        return Response("hello")

    with Configurator() as config:
        config.add_route("relay", "/relay")
        config.add_view(view, route_name="relay")
        config.add_route("hello", "/hello")
        config.add_view(hello, route_name="hello")
        return config.make_wsgi_app()


def without_framework() -> Any:
    def app(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"hello"]
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return relay(parse_qs(environ["QUERY_STRING"])["url"][0], "bare")

    return app


def show_notes(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(notes).encode()]


APPS = {"bottle": with_bottle, "django": with_django, "pyramid": with_pyramid, "bare": without_framework}


def make() -> Any:
    mounts: Dict[str, Any] = {"/notes": show_notes}
    for name, build in APPS.items():
        try:
            mounts["/" + name] = LLMStreamMiddleware(build(), heartbeat_interval=0.3, status_hold=0.3)
        except ImportError:
            continue
    return DispatcherMiddleware(show_notes, mounts)


app = make()
