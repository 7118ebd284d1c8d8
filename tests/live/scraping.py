"""Reading the metrics of a live server."""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet, Tuple

from prometheus_client.parser import text_string_to_metric_families

from flask_llmstream.testing import LiveServer, wait_until

Key = Tuple[str, FrozenSet[Tuple[str, str]]]


class Scrape(Dict[Key, float]):
    """The samples of one answer, by name and labels."""

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels; the prefix of all names is left out."""
        wanted = set(labels.items())
        return sum(value for key, value in self.items() if key[0] == "llmstream_" + name and wanted <= key[1])

    def by(self, name: str, label: str, **labels: str) -> Dict[str, float]:
        """Return the sums by the values of *label*, without those that are 0."""
        values = {dict(key[1]).get(label, "") for key in self if key[0] == "llmstream_" + name}
        sums = {value: self.sum(name, **dict(labels, **{label: value})) for value in values if value}
        return {value: found for value, found in sums.items() if found}


def parse(text: str) -> Scrape:
    """Return the samples in *text*."""
    found = Scrape()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def fetch(server: LiveServer, path: str = "/llmstream/metrics", **headers: str) -> Any:
    """Return status, headers and text of one answer."""
    with server.request(path, headers=headers) as reader:
        return reader.status, reader.headers, reader.read()


def scrape(server: LiveServer, path: str = "/llmstream/metrics") -> Scrape:
    """Return what any worker answers."""
    status, _, data = fetch(server, path)
    assert status == 200, data
    return parse(data.decode())


def scrape_when(server: LiveServer, is_there: Callable[[Scrape], Any], timeout: float = 10.0) -> Scrape:
    """Return the first scrape of which *is_there* is true."""
    last = [Scrape()]

    def look() -> bool:
        last[0] = scrape(server)
        return bool(is_there(last[0]))

    wait_until(look, timeout, lambda: f"other metrics than {dict(last[0])}; the log:\n{server.log()}")
    return last[0]


def assert_grown(before: Scrape, after: Scrape) -> None:
    """Make sure that no counter has fallen, and none has gone."""
    for key, value in before.items():
        if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
            assert after.get(key, -1.0) >= value, (key, value, after.get(key))
