"""Who may follow, resume and stop what: people who are nobody, logins, other sites, caches, oracles."""

from __future__ import annotations

import hmac
from typing import Any, Dict, List, Optional

import pytest
from costs import costs_at_most
from flask import Flask, request, session

from flask_llmstream import LLMStream, resume_response, stream_response
from flask_llmstream.sansio import cursor
from flask_llmstream.testing import wait_until

SHORT = "chat-7"
KEY = "a-key-of-the-client-0123456789"


def make_app(name: str, **settings: Any) -> Any:
    app = Flask(__name__)
    app.secret_key = "of the tests alone"
    app.testing = True
    LLMStream(app, event_log=f"memory://strangers-{name}", **settings)

    @app.route("/ask", methods=["GET", "POST"])
    def ask() -> Any:
        return stream_response(
            ["the answer"], format="sse", resumable=True, resume_key=request.args.get("key"), headers=None
        )

    @app.route("/running")
    def running() -> Any:
        return resume_response(SHORT)

    @app.route("/login/<user>")
    def login(user: str) -> str:
        session["user_id"] = None if user == "nobody" else user
        return user

    @app.route("/visit")
    def visit() -> str:
        session["seen"] = True
        return "seen"

    return app


def begin(client: Any, headers: Optional[Dict[str, str]] = None, query: str = "") -> Any:
    """Begin a stream and read all of it; return where it is and its last cursor."""
    answer = client.get("/ask" + query, headers=headers)
    assert answer.status_code == 200 and b"the answer" in answer.data
    ids = [line[4:] for line in answer.data.decode().splitlines() if line.startswith("id: ")]
    return answer.headers["Content-Location"].replace("http://localhost", ""), ids[0]


def status_of(client: Any, place: str, headers: Optional[Dict[str, str]] = None) -> int:
    code: int = client.get(place, headers=headers).status_code
    return code


@pytest.mark.parametrize("nobody", [None, ""])
def test_owner_that_is_nobody_is_not_somebody(nobody: Any) -> None:
    """Two visitors without an account share no name under which a short key would be found."""
    client = make_app(f"nobody-{nobody}", owner=lambda: nobody).test_client()
    answer = client.get(f"/ask?key={SHORT}")
    assert answer.status_code == 400 and b"invalid_resume_key" in answer.data
    refused = client.post("/ask", headers={"Idempotency-Key": "1"})
    assert refused.status_code == 400 and b"invalid_idempotency_key" in refused.data


def test_session_of_somebody_who_has_logged_out_is_nobodys() -> None:
    """Some apps write ``None`` for the user, and so do all who log out of them."""
    app = make_app("logged-out")
    places = []
    for _ in range(2):
        client = app.test_client()
        client.get("/login/nobody")
        places.append((client, begin(client)[0]))
    found = [[status_of(client, place) for _, place in places] for client, _ in places]
    assert found == [[200, 404], [404, 200]]


def test_shared_authorization_does_not_make_two_users_one() -> None:
    """Such as the password in front of a staging site, or the key of a front end."""
    app = make_app("shared")
    shared = {"Authorization": "Basic c3RhZ2luZzpzdGFnaW5n"}
    ada, bob = app.test_client(), app.test_client()
    for client, name in ((ada, "ada"), (bob, "bob")):
        client.get("/login/" + name)
    place, last = begin(ada, shared, f"?key={SHORT}")
    assert status_of(ada, place, shared) == 200
    assert status_of(bob, place, shared) == 404
    assert status_of(bob, "/ask", dict(shared, **{"Last-Event-ID": last})) == 404
    assert bob.delete(place, headers=shared).status_code == 404
    first = ada.post("/ask", headers=dict(shared, **{"Idempotency-Key": KEY})).headers["Content-Location"]
    other = bob.post("/ask", headers=dict(shared, **{"Idempotency-Key": KEY})).headers["Content-Location"]
    again = ada.post("/ask", headers=dict(shared, **{"Idempotency-Key": KEY})).headers["Content-Location"]
    assert first == again != other


def test_streams_do_not_pass_from_one_login_to_the_next() -> None:
    """Nor from before a login to after it: who planted the visitor's session gets nothing of the user."""
    app = make_app("logins")
    planted = app.test_client()
    planted.get("/visit")
    as_visitor = begin(planted)[0]
    stolen = app.test_client()
    with planted.session_transaction() as theirs, stolen.session_transaction() as ours:
        ours.update(theirs)
    assert status_of(stolen, as_visitor) == 200  # one session is one owner
    planted.get("/login/ada")
    as_ada, last = begin(planted)
    assert status_of(planted, as_ada) == 200 and status_of(planted, as_visitor) == 404
    for place, headers in ((as_ada, {}), ("/ask", {"Last-Event-ID": last})):
        assert status_of(stolen, place, headers) == 404
    planted.get("/login/bob")
    assert status_of(planted, as_ada) == 404


def test_refusals_of_strangers_look_alike() -> None:
    """Status, body and every header field, whether the stream is another's, is gone or never was."""
    app = make_app("alike", keep=0.2)
    ada, bob = app.test_client(), app.test_client()
    for client, name in ((ada, "ada"), (bob, "bob")):
        client.get("/login/" + name)
    old = begin(ada)[0]
    wait_until(lambda: status_of(ada, old) == 410, 10.0, "a stream to be forgotten")
    place, last = begin(ada)
    never = place[:-4] + "0000"
    paths = [place, old, never, "/llmstream/streams/nonsense", "/llmstream/streams/" + "a" * 5000]
    answers = [bob.get("/ask", headers={"Last-Event-ID": last})]
    for path in paths:
        answers += [bob.get(path), bob.delete(path), bob.get(path, headers={"Last-Event-ID": last})]
    seen = {(answer.status_code, answer.data, tuple(sorted(answer.headers.items()))) for answer in answers}
    assert len(seen) == 1, seen
    assert seen.pop()[0] == 404


def test_signature_is_looked_at_before_the_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time of a refusal says nothing of what there is; nor of how much of a signature is right."""
    from flask_llmstream.eventlog.memory import MemoryEventLog

    client = make_app("timing").test_client()
    place, last = begin(client)
    asked: List[Any] = []
    compared: List[Any] = []
    monkeypatch.setattr(MemoryEventLog, "read", lambda self, *args: asked.append(args))
    monkeypatch.setattr(MemoryEventLog, "request_stop", lambda self, *args: asked.append(args))

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    class Recording:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(cursor, "hmac", Recording)
    for wrong in (place[:-1] + "x", place[:-1] + ("0" if place[-1] != "0" else "1")):
        assert status_of(client, wrong) == 404 and client.delete(wrong).status_code == 404
        spoilt = last[:-1] + ("0" if last[-1] != "0" else "1")
        assert status_of(client, place, {"Last-Event-ID": spoilt}) == 404
    assert not asked and len(compared) >= 4


def test_giant_cursors_and_tickets_are_not_looked_at() -> None:
    keys = cursor.CursorKeys([b"key"])
    looks: List[Any] = [keys.read, keys.redeem]
    for giant in ("v1." + "a" * 10**6, "1" * 10**6, "a" * 10**6 + "-" + "b" * 24):
        for look in looks:

            def refuse(look: Any = look, giant: str = giant) -> None:
                with pytest.raises(cursor.BadCursor):
                    look(giant, "me")

            costs_at_most(0.1, refuse)


def test_page_of_another_site_cannot_stop_or_read() -> None:
    """DELETE asks before (a preflight that nobody grants), and what a GET brings is not for its eyes."""
    client = make_app("sites").test_client()
    place, _ = begin(client)
    foreign = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "DELETE"}
    for answer in (client.options(place, headers=foreign), client.get(place, headers=foreign)):
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control-")]
    # What a form or a link of another page can send changes nothing.
    assert client.post(place).status_code == 405
    assert client.post(place, data={"_method": "DELETE"}).status_code == 405
    assert client.get(place, headers={"X-HTTP-Method-Override": "DELETE"}).status_code == 200


def test_shared_caches_keep_nothing() -> None:
    app = make_app("caches")
    client = app.test_client()
    client.get("/login/ada")
    place, last = begin(client)
    for answer in (client.get("/ask"), client.get(place)):
        assert "no-cache" in answer.headers["Cache-Control"]
        assert not {"ETag", "Last-Modified", "Expires"} & set(answer.headers.keys())
    assert "Cookie" in client.get(place).headers["Vary"] and "Accept" in client.get(place).headers["Vary"]
    refused = [
        client.get(place[:-1] + "x"), client.delete(place), client.get("/running"),
        client.post("/ask", headers={"Idempotency-Key": "ä"}), client.get("/llmstream/probe"),
    ]
    for answer in refused:
        assert answer.headers["Cache-Control"] == "no-store", answer.status_code


def test_probe_opens_for_nobody_without_a_token_that_holds() -> None:
    from flask_llmstream.probe import make_token

    app = make_app("probe")
    client = app.test_client()
    other = make_app("probe-of-another")
    other.secret_key = "another"
    tokens = ["", "x", make_token(app, -1), make_token(other, 60), make_token(app, 60)[:-1] + "~", "e" * 9**5]
    answers = [client.get("/llmstream/probe", query_string={"token": token, "idle": "1"}) for token in tokens]
    assert {(answer.status_code, answer.data) for answer in answers} == {(404, answers[0].data)}
    good = {"token": make_token(app, 60)}
    assert client.head("/llmstream/probe", query_string=good).status_code == 200  # starts nothing
    for method in (client.post, client.delete, client.put):
        assert method("/llmstream/probe", query_string=good).status_code == 405
    for wrong in ("inf", "nan", "-1", "1e9", "<script>", "../../etc/passwd"):
        for name in ("idle", "left", "leave"):
            answer = client.get("/llmstream/probe", query_string=dict(good, **{name: wrong}))
            assert answer.status_code == 400 and answer.mimetype == "text/plain"


def test_user_controlled_values_begin_no_header() -> None:
    """They are refused, hashed, or left out: none of them comes back in a header field."""
    client = make_app("headers").test_client()
    for value in ("a\x0bb", "é", " ", "x" * 256, "a b"):
        answer = client.post("/ask", headers={"Idempotency-Key": value})
        assert answer.status_code == 400
        assert all(value.strip() not in field or not value.strip() for _, field in answer.headers)
    answer = client.get("/ask?key=" + "%0d%0aSet-Cookie:%20evil=1" + "x" * 16)
    assert answer.status_code == 200
    assert "evil" not in str(answer.headers)
    for accept in ("text/event-stream\x0b", "*/*;q=\x7f", "a" * 8000):
        answer = client.get("/ask", headers={"Accept": accept, "User-Agent": "Safari\x0b" * 100})
        assert answer.headers["Content-Type"].startswith("text/event-stream")
