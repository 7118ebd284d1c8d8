"""Django's StreamingHttpResponse; without middleware, which is its cheapest form."""

from __future__ import annotations

import json
from typing import Iterator

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path

from benchmarks.apps import work


def respond(tokens: Iterator[str]) -> StreamingHttpResponse:
    """Send *tokens*."""
    response = StreamingHttpResponse(events(tokens), content_type="text/event-stream")
    response["Cache-Control"] = "no-cache"
    return response


def events(tokens: Iterator[str]) -> Iterator[str]:
    """Make an event of each of *tokens*."""
    for token in tokens:
        yield f"data: {json.dumps({'text': token})}\n\n"


def steady(request: HttpRequest) -> StreamingHttpResponse:
    """Stream at a steady rate for ever."""
    return respond(work.steady(work.TOKENS, request.GET["clock"]))


def hot(request: HttpRequest) -> StreamingHttpResponse:
    """Stream as fast as possible."""
    return respond(work.hot(work.TOKENS, int(request.GET["count"])))


def idle(request: HttpRequest) -> StreamingHttpResponse:
    """Send one event and go silent."""
    return respond(work.idle(work.TOKENS))


urlpatterns = [path("steady", steady), path("hot", hot), path("idle", idle)]
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of the benchmarks", USE_I18N=False)
application = get_wsgi_application()
