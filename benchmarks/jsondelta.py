"""What a token of JSON costs, as ratios: ``python -m benchmarks.jsondelta``.

*flat* is the cost per token at the end of a document of 1 MB, over that at its beginning. *jiter*
is the cost of parsing the text so far with jiter at every token, over that of reading changes: on
the way to 100 KB, and when the document has 100 KB. Best of several rounds each, in one process,
with nothing else in it. The cases ``json, …`` of ``python -m benchmarks`` measure the same for the
report.
"""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

from flask_llmstream.sansio.jsondelta import json_deltas, snapshots

#: Characters of a token: about what models write.
TOKEN = 4
#: jiter parses at each so many tokens; its cost per parse is what counts.
_SAMPLE = 16
#: Tokens whose cost is looked at together.
_WINDOW = 350

Use = Callable[[Iterable[str]], Any]


def form(size: int) -> str:
    """Return a document of many fields, in about *size* characters."""
    row = {"name": "Ada Lovelace", "note": "wrote the first \"program\"\n", "born": 1815, "paid": True,
           "tags": ["mathematics", "engines"], "score": 0.75}
    return json.dumps({"rows": [dict(row, id=i) for i in range(max(1, size // 130))]}, indent=1)


def letter(size: int) -> str:
    """Return a document of one long text, in about *size* characters."""
    return json.dumps({"text": "It was a bright cold day in April, and\nthe model wrote on. " * (size // 60)})


def numbers(size: int) -> str:
    """Return a document of numbers, in about *size* characters."""
    return json.dumps(list(range(1000, 1000 + size // 6)))


DOCUMENTS: Dict[str, Callable[[int], str]] = {"form": form, "letter": letter, "numbers": numbers}


def tokens_of(text: str) -> List[str]:
    """Return *text* as tokens."""
    return [text[at : at + TOKEN] for at in range(0, len(text), TOKEN)]


def read_deltas(tokens: Iterable[str]) -> None:
    """Read all changes."""
    for _ in json_deltas(tokens):
        pass


def read_snapshots(tokens: Iterable[str]) -> None:
    """Read all snapshots, and look at the last one."""
    snapshot = None
    for snapshot in snapshots(tokens):
        pass
    assert snapshot is not None and snapshot.complete


def per_token(use: Use, tokens: List[str], rounds: int) -> float:
    """Return the least seconds per token of *rounds*."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        use(tokens)
        best = min(best, time.perf_counter() - begun)
    return best / len(tokens)


def flatness(
    make: Callable[[int], str], use: Use = read_deltas, size: int = 1000000
) -> Tuple[float, float]:
    """Return the seconds of CPU per token in the first and in the last tenth of one long document.

    The least of what each 1.4 KB of them cost: others on the machine can only make that more. To
    compare documents of two sizes would compare how long each was left in peace.
    """
    tokens = tokens_of(make(size))
    marks: List[float] = []

    def watched() -> Iterator[str]:
        for number, token in enumerate(tokens):
            if number % _WINDOW == 0:
                marks.append(time.process_time())
            yield token

    use(watched())
    costs = [(end - begin) / _WINDOW for begin, end in zip(marks, marks[1:])]
    tenth = max(1, len(costs) // 10)
    return min(costs[:tenth]), min(costs[-tenth:])


def with_jiter(tokens: List[str], since: int = 0) -> float:
    """Return the seconds per token of parsing the text so far at every token.

    :param since: the first token that counts.
    """
    import jiter

    data = bytearray("".join(tokens[:since]).encode())
    spent = 0.0
    parsed = 0
    for number, token in enumerate(tokens[since:]):
        data += token.encode()
        if number % _SAMPLE == 0:
            begun = time.perf_counter()
            jiter.from_json(bytes(data), partial_mode="trailing-strings")
            spent += time.perf_counter() - begun
            parsed += 1
    return spent / parsed


def main() -> None:
    """Measure, and print the ratios."""
    columns = ("per token", "flat", "jiter", "at its end", "snapshots", "flat")
    print("document  ", " ".join(f"{column:>12}" for column in columns))
    for name, make in DOCUMENTS.items():
        small, large = flatness(make)
        small_snapshot, large_snapshot = flatness(make, read_snapshots)
        tokens = tokens_of(make(100000))
        ours = per_token(read_deltas, tokens, 3)
        way = min(with_jiter(tokens) for _ in range(3)) / ours
        end = min(with_jiter(tokens, len(tokens) * 19 // 20) for _ in range(3)) / ours
        row = (
            f"{ours * 1e6:.2f} µs", f"{large / small:.2f}", f"{way:.1f}x", f"{end:.1f}x",
            f"{large_snapshot * 1e6:.2f} µs", f"{large_snapshot / small_snapshot:.2f}",
        )
        print(f"{name:10}", " ".join(f"{figure:>12}" for figure in row))


if __name__ == "__main__":
    main()
