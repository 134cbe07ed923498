"""Damaged copies of a file's bytes."""

import random
from collections.abc import Callable, Mapping


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flipped(count: int) -> Callable[[bytes, random.Random], bytes]:
    def flip(data: bytes, rng: random.Random) -> bytes:
        changed = bytearray(data)
        for _ in range(count):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return flip


def _header(data: bytes, rng: random.Random) -> bytes:
    """Return bit flips among the first bytes, where sizes and offsets are."""
    return _flipped(2)(data[:96], rng) + data[96:]


def _replaced(fill: Callable[[random.Random, int], bytes]) -> Callable[..., bytes]:
    def replace(data: bytes, rng: random.Random) -> bytes:
        start = rng.randrange(len(data))
        length = rng.randint(1, 64)
        return data[:start] + fill(rng, length) + data[start + length :]

    return replace


def _cut_out(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 200) :]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": _truncated,
    "one bit": _flipped(1),
    "twenty bits": _flipped(20),
    "header": _header,
    "zeros": _replaced(lambda rng, n: bytes(n)),
    "ones": _replaced(lambda rng, n: b"\xff" * n),
    "noise": _replaced(lambda rng, n: rng.randbytes(n)),
    "cut out": _cut_out,
}


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return one of the damages, drawn, and what it makes of the bytes."""
    what = rng.choice(list(DAMAGES))
    return what, DAMAGES[what](data, rng)
