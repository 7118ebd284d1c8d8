"""The lives: what each kind does, and how it must end. All chance comes from a life's own id and the seed."""

from __future__ import annotations

import random
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import gevent

from benchmarks.soak.asking import Answer, Cut, Missed, Unexpected, compare, make_script, target
from benchmarks.soak.words import script

__all__ = ["KINDS", "Kind", "Life"]

Address = Tuple[str, int]

#: What upstreams do wrong, and what clients are told then.
_FAULTS = {
    "error": ("upstream_rejected", "upstream_unavailable", "upstream_failed", "upstream_error"),
    "garbage": ("upstream_invalid",),
    "cut": ("upstream_interrupted",),
    "reset": ("upstream_interrupted",),
}


class Life:
    """One client's life.

    :param seed: of the run.
    :param id: of the life; its first letter names the server.
    :param servers: addresses by letter.
    :param pace: factor of all durations.
    :param shares: whether streams can be read on servers that have not begun them.
    :param grace: seconds after which a stream that nobody reads may be ended.
    """

    def __init__(
        self, seed: int, id: str, servers: Dict[str, Address], pace: float, shares: bool, grace: float
    ) -> None:
        self.id = id
        self.key = f"{seed}.{id}"
        self.rng = random.Random(self.key)
        self.servers = servers
        self.pace = pace
        self.shares = shares
        self._grace = grace
        self._left_at: Optional[float] = None
        self._longest_away = 0.0
        self.home = id[0]
        #: Servers that it has asked.
        self.asked = {self.home}
        names = list(KINDS)
        chosen = self.rng.choices(names, [KINDS[name].weight for name in names])[0]
        #: An id may say of what kind the life is.
        self.kind = id.partition("~")[2] or chosen

    def live(self) -> str:
        """Live it; return what has become of it.

        :raises Unexpected: something else.
        :raises Cut: it was cut short, or its stream is gone with the worker that had it.
        """
        try:
            return KINDS[self.kind].live(self)
        except Unexpected as error:
            if isinstance(error, Missed):
                self.is_back()  # and was told so
            # On a busy machine a client can come back too late.
            if isinstance(error, Missed) and self._longest_away > self._grace - 1.5:  # a busy machine is late
                return f"came back too late: {error}"
            if isinstance(error, Missed):
                # What is in memory goes with its worker: whether one went is for others to judge.
                kind = Unexpected if self.shares else Cut
                raise kind(f"{error}; was away for {self._longest_away:.1f} s at most") from error
            raise

    def leave(self, answer: Answer) -> None:
        """Leave, to come back."""
        self._left_at = time.monotonic()
        answer.leave(self.way())

    def is_back(self) -> None:
        """Take note of how long it was away."""
        if self._left_at is not None:
            self._longest_away = max(self._longest_away, time.monotonic() - self._left_at)
            self._left_at = None

    # -- what lives are made of -------------------------------------------------------------

    def pause(self, least: float, most: float) -> None:
        """Wait for a random while."""
        gevent.sleep(self.rng.uniform(least, most) * self.pace)

    def way(self) -> str:
        """Choose how to leave."""
        return self.rng.choice(["fin", "rst"])

    def script(self, **more: Any) -> str:
        """Choose what the upstream says."""
        model, self.count = make_script(self.key, self.rng, self.pace, **more)
        return model

    def some(self) -> int:
        """Choose how many pieces to read before something happens."""
        return self.rng.randint(1, max(1, self.count - 2))

    def ask(self, path: str, **request: Any) -> Answer:
        """Ask the server that is home."""
        return Answer(self.servers[self.home], path, **request)

    def ask_any(self, path: str, **request: Any) -> Answer:
        """Ask it or another one, as a load balancer would."""
        others = sorted(self.servers) if self.shares else [self.home]
        at = self.rng.choice(others) if self.rng.random() < 0.5 else self.home
        self.asked.add(at)
        return Answer(self.servers[at], path, **request)

    def chat(self, resumable: bool = False, script: str = "", **options: Any) -> str:
        """Return the path of a stream from the upstream."""
        if resumable:
            options["resumable"] = True
        route = "chat" if options or self.rng.random() < 0.7 else "view"
        return target(route, self.id, [script or self.script()], **options)

    def exact(self, answer: Answer) -> None:
        """Check that the stream has ended well, with every piece."""
        answer.ended()
        compare(answer.text, self.key, self.count)


def _finish(life: Life) -> str:
    with life.ask(life.chat(resumable=life.rng.random() < 0.3)) as answer:
        life.exact(answer.read())
    return "finished"


def _leave(life: Life) -> str:
    with life.ask(life.chat(resumable=life.rng.random() < 0.1)) as answer:
        answer.read(life.some())
        life.pause(0, 0.5)
        answer.leave(life.way())
    return "left"


def _leave_early(life: Life) -> str:
    model = life.script(hold=round(life.rng.uniform(0.5, 3.0) * life.pace, 3))
    with life.ask(life.chat(script=model)) as answer:
        if life.rng.random() < 0.7:
            life.pause(0, 0.6)
        answer.leave(life.way())
    return "left"


def _half_close(life: Life) -> str:
    with life.ask(life.chat()) as answer:
        answer.read(life.some())
        answer.sock.shutdown(1)
        life.exact(answer.read())
    return "finished"


def _stall(life: Life) -> str:
    with life.ask(life.chat(), reads_little=True) as answer:
        answer.read(life.some())
        life.pause(0.5, 4.0)
        if life.rng.random() < 0.4:
            answer.leave(life.way())
            return "left"
        life.exact(answer.read())
    return "finished"


def _stuck(life: Life) -> str:
    with life.ask(f"/flood?life={life.id}&count=400", reads_little=True) as answer:
        answer.begin()
        # Far longer than slow_reader_timeout: then nothing but what was under way is there, and no end.
        gevent.sleep(2 * max(3.0, 6 * life.pace) + 3)
        answer.read()
        if answer.end is not None and answer.end[0] == "done":
            raise Unexpected("a client that reads nothing was not cut off")
    return "cut off"


def _event_source(life: Life) -> str:
    path, said, last = life.chat(resumable=True), "", ""
    turns = life.rng.randint(1, 4)
    ends: List[Any] = []
    while True:
        headers = {"Last-Event-ID": last} if last else {}
        with (life.ask_any if last else life.ask)(path, headers=headers) as answer:
            if last and ends:
                answer.begin(204)
                break
            answer.begin()
            life.is_back()
            answer.read(life.some() if turns > 0 and said else (1 if turns > 0 else -1))
            turns -= 1
            said += answer.text
            last = answer.last_id or last
            if answer.end is not None:
                ends.append(answer.ended())
            life.leave(answer)
        life.pause(0, 0.4)
    compare(said, life.key, life.count)
    return "came back"


def _come_back(life: Life) -> str:
    with life.ask(life.chat(resumable=True), method="POST", json={"question": "?"}) as answer:
        answer.read(life.some())
        url, said, last = answer.url, answer.text, answer.last_id
        over = answer.end is not None and bool(answer.ended())
        life.leave(answer)
    for turn in range(30):
        if over:
            compare(said, life.key, life.count)
            return "came back"
        life.pause(0, 0.4)
        with life.ask_any(url, headers={"Last-Event-ID": last}) as answer:
            answer.begin()
            life.is_back()
            answer.read(life.some() if turn < 2 else -1)
            said += answer.text
            last = answer.last_id or last
            if answer.end is not None:
                answer.ended()
                over = True
            life.leave(answer)
    raise Cut("was sent away thirty times")


def _follow(life: Life) -> str:
    with life.ask(life.chat(resumable=True)) as answer:
        answer.read(1)
        follower = life.ask_any(answer.url)

        def read() -> Any:
            with follower:
                try:
                    follower.read()
                except (Cut, Unexpected) as error:
                    return error

        reading = gevent.spawn(read)
        try:
            answer.read()
            reading.join()
        finally:
            reading.kill()
        if reading.value is not None:
            raise reading.value
        for each in (answer, follower):
            life.exact(each)
    return "finished"


def _stop(life: Life) -> str:
    with life.ask(life.chat(resumable=True)) as answer:
        answer.read(life.some())
        with life.ask_any(answer.url, method="DELETE") as stopping:
            stopping.begin(204)
        data = answer.read().ended(stopped=True)
        compare(answer.text, life.key, life.count, whole=data["reason"] != "cancelled")
    return "stopped" if data["reason"] == "cancelled" else "finished"


def _refused(life: Life) -> str:
    with life.ask(life.chat(script=life.script(end="status"))) as answer:
        try:
            answer.begin(502)
        except Unexpected:
            if answer.reader is None or answer.reader.status != 200:
                raise
            return "failed"  # the upstream was slower than status_hold
    return "refused"


def _fault(life: Life) -> str:
    end = life.rng.choice(sorted(_FAULTS))
    with life.ask(life.chat(script=life.script(end=end), resumable=life.rng.random() < 0.2)) as answer:
        answer.read()
        code = answer.ended("failed").get("code")
        if code not in _FAULTS[end]:
            raise Unexpected(f"upstream with {end}: failed with {code}")
        compare(answer.text, life.key, life.count, whole=False)
    return f"failed: {end}"


def _silent(life: Life) -> str:
    with life.ask(life.chat(script=life.script(end="silent"))) as answer:
        if life.rng.random() < 0.5:
            answer.read(life.some())
            life.pause(0, 3.0)
            answer.leave(life.way())
            return "left"
        answer.read().ended("failed", ("upstream_timeout",))
        compare(answer.text, life.key, life.count)
    return "failed: silent"


def _raising(life: Life) -> str:
    with life.ask(target("raising", life.id, [life.script()])) as answer:
        answer.read().ended("failed", ("internal_error",))
        compare(answer.text, life.key, life.count)
    return "failed: view"


def _shielded(life: Life) -> str:
    life.count = life.rng.randint(2, 12)
    model = script(life.key, life.count, life.rng.uniform(0.05, 0.5) * life.pace)
    with life.ask(target("shielded", life.id, [model])) as answer:
        if life.rng.random() < 0.6:
            answer.read(life.some())
            life.pause(0, 0.5)
            answer.leave(life.way())
            return "left"
        life.exact(answer.read())
    return "finished"


def _several(life: Life) -> str:
    keys, counts, models = [], [], []
    for number in range(life.rng.randint(2, 4)):
        model, count = make_script(f"{life.key}.{number}", life.rng, life.pace)
        keys.append(f"{life.key}.{number}")
        counts.append(count)
        models.append(model)
    options: Dict[str, Any] = {"resumable": True} if life.rng.random() < 0.3 else {}
    with life.ask(target("several", life.id, models, **options)) as answer:
        if life.rng.random() < 0.5:
            answer.read(life.rng.randint(1, 8))
            answer.leave(life.way())
            return "left"
        answer.read().ended()
        for number, (key, count) in enumerate(zip(keys, counts)):
            compare(answer.texts.get(str(number), ""), key, count)
    return "finished"


def _relay(life: Life) -> str:
    end = life.rng.choice(["done", "done", "done", "cut", "reset", "garbage"])
    return _pass(life, "relay", end)


def _legacy(life: Life) -> str:
    return _pass(life, "legacy", life.rng.choice(["done", "done", "done", "leave", "leave"]))


def _pass(life: Life, route: str, end: str) -> str:
    model = life.script(**({} if end == "leave" else {"end": end}))
    with life.ask(target(route, life.id, [model])) as answer:
        if end == "leave" or life.rng.random() < 0.3:
            answer.begin()
            answer.reader.read_until(b"data: ")  # type: ignore[union-attr]
            life.pause(0, 2.0)
            answer.leave(life.way())
            return "left"
        try:
            said, whole = answer.spoken()
        except ValueError:
            if end == "done":
                raise
            return f"failed: {end}"  # half an event, which its own clients do not read either
        if end != "garbage" and whole != (end == "done"):
            raise (Cut if end == "done" else Unexpected)(f"{end}: whole is {whole}, {len(said)} characters")
        compare(said, life.key, life.count, whole=whole)
    return "finished" if whole else f"failed: {end}"


def _detach(life: Life) -> str:
    resumable = life.rng.random() < 0.6
    # All wait for those that nobody can end.
    path = life.chat(resumable=resumable, script=life.script(longest=8.0), on_disconnect="detach")
    with life.ask(path) as answer:
        answer.read(life.some())
        url = answer.url if resumable else ""
        life.leave(answer)
    if not resumable:
        return "left to go on"
    life.pause(0, 2.0)
    with life.ask_any(url) as answer:
        answer.begin()
        life.is_back()
        life.exact(answer.read())
    return "finished"


def _grace(life: Life) -> str:
    model = script(life.key, 1000, 0.2 * life.pace)
    life.count = 1000
    with life.ask(life.chat(script=model, on_disconnect=round(0.5 * life.pace, 3))) as answer:
        answer.read(life.rng.randint(1, 5))
        answer.leave(life.way())
    return "left, with grace"


def _one_by_one(life: Life) -> str:
    sock = None
    try:
        for number in range(life.rng.randint(2, 4)):
            answer = life.ask(f"/hello?name={life.id}", sock=sock)
            sock = answer.sock
            if answer.begin().json() != {"hello": life.id}:
                raise Unexpected("another answer")
            if sock is not None and answer.reader.headers.get("connection", "") == "close":  # type: ignore
                sock.close()
                sock = None
            life.key = f"{life.key[:-2] if number else life.key}-{number}"
            answer = life.ask(target("chat", life.id, [life.script()]), sock=sock)
            sock = answer.sock
            life.exact(answer.read())
            if not answer.reader.complete:  # type: ignore[union-attr]
                raise Cut("a body without its end")
            if answer.reader.headers.get("connection", "") == "close":  # type: ignore[union-attr]
                sock.close()
                sock = None
    finally:
        if sock is not None:
            sock.close()
    return "finished"


def _hello(life: Life) -> str:
    for _ in range(life.rng.randint(1, 5)):
        with life.ask(f"/hello?name={life.id}", json={"some": "body"}) as answer:
            if answer.begin().json() != {"hello": life.id}:
                raise Unexpected("another answer")
        life.pause(0, 0.5)
    with life.ask(life.chat(), method="HEAD") as answer:
        answer.begin()
    return "answered"


def _again(life: Life) -> str:
    headers = {"Idempotency-Key": f"of-a-life-{life.key}"}
    path = life.chat(resumable=True)
    with life.ask(path, json={}, headers=headers) as answer:
        if life.rng.random() < 0.5:
            answer.read(life.some())
            life.leave(answer)
        else:
            life.exact(answer.read())
    life.pause(0, 0.4)
    with life.ask_any(path, json={}, headers=headers) as answer:
        answer.begin()
        life.is_back()
        life.exact(answer.read())
    return "asked twice"


class Kind(NamedTuple):
    """A kind of life."""

    #: How many of all lives are of this kind, in thousandths or so.
    weight: int
    live: Callable[[Life], str]
    #: For what reasons its stream may end, for the app; empty for any.
    reasons: Tuple[str, ...] = ()


KINDS: Dict[str, Kind] = {
    "finish": Kind(180, _finish, ("finish",)),
    "leave": Kind(160, _leave, ("disconnect", "finish")),
    "leave-early": Kind(60, _leave_early, ("disconnect", "finish")),
    "half-close": Kind(30, _half_close, ("finish",)),
    "stall": Kind(60, _stall, ("disconnect", "finish")),
    "stuck": Kind(5, _stuck, ("disconnect",)),
    "event-source": Kind(80, _event_source),
    "come-back": Kind(60, _come_back),
    "follow": Kind(40, _follow),
    "stop": Kind(40, _stop),
    "refused": Kind(20, _refused, ("error",)),
    "fault": Kind(50, _fault),
    "silent": Kind(20, _silent, ("timeout", "disconnect")),
    "raising": Kind(20, _raising, ("error",)),
    "shielded": Kind(30, _shielded, ("disconnect", "finish")),
    "several": Kind(30, _several),
    "relay": Kind(40, _relay),
    "legacy": Kind(40, _legacy),
    "detach": Kind(25, _detach, ()),
    "grace": Kind(15, _grace, ("disconnect",)),
    "one-by-one": Kind(25, _one_by_one, ("finish",)),
    "hello": Kind(20, _hello),
    "again": Kind(20, _again),
}
