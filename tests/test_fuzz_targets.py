"""What is fuzzed holds for a few thousand inputs near those that get far; see ``make fuzz``."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).with_name("fuzz")))
from targets import SEEDS, TARGETS  # noqa: E402 # the fuzzer runs beside it, as a script


def mutations(seed: bytes, count: int, chance: random.Random) -> Iterator[bytes]:
    """Yield *seed* with bytes that were changed, taken out, doubled or cut off."""
    for _ in range(count):
        data = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data) + 1)
            length = chance.randint(0, 8)
            data[at : at + length] = chance.choice(
                [b"", bytes([chance.randrange(256)]), data[at : at + 8] * 2, b"\n", b'"', b"{", b"\xf0\x9f"]
            )
        yield bytes(data[: chance.randint(0, len(data))] if chance.random() < 0.1 else data)


def test_every_target_has_seeds_and_every_seed_a_target() -> None:
    assert set(SEEDS) == set(TARGETS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_holds_near_its_seeds(name: str) -> None:
    chance = random.Random(name)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for data in mutations(seed, 200, chance):
            try:
                TARGETS[name](data)
            except BaseException as error:
                error.args = (f"{error}; the input was {data!r}",)
                raise


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_target_holds_for_any_bytes(name: str) -> None:
    @given(st.binary(max_size=200))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
