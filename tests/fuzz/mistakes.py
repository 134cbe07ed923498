"""Calls that every method must refuse at once, with a sentence."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.calls import Case, Finding, Refused, judged
from tests.fuzz.methods import SMALLEST_GRID

LONGEST_SECONDS = 2.0
"""Of the processor; a refusal that comes after the work is none."""

Arguments = dict[str, Any]
NAN, INF = float("nan"), float("inf")

SIZES: Mapping[str, Any] = {
    "no side": 0,
    "a negative number": -8,
    "infinite": INF,
    "not a number": NAN,
    "one is infinite": (4, INF),
    "one is not a number": (NAN, 4),
    "one is None": (None, 4),
    "bytes": b"88",
    "text": "88",
    "words": ("a", "b"),
    "one side": (4,),
    "three sides": (4, 4, 4),
    "negative": (-1, 4),
    "zero": (4, 0),
    "half a pixel": (4.5, 4),
    "nested": ((4, 4), (4, 4)),
    "complex": (4j, 4),
    "larger than memory": (10**9, 10**9),
    "larger than integers": (2**63, 2),
    "absurd": (10**30, 10**30),
}

TENSORS: Mapping[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "numpy": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "three axes": lambda x: x[0],
    "five axes": lambda x: x[None],
    "no axes": lambda x: x.sum(),
    "no rows": lambda x: x[:, :, :0],
    "no channels": lambda x: x[:, :0],
    "no items": lambda x: x[:0],
    "other batch": lambda x: torch.cat((x, x)),
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x[0]]),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "meta": lambda x: x.to("meta"),
}

BUDGETS: Mapping[str, Any] = {
    "no side": 0,
    "negative": -5,
    "infinite": INF,
    "not a number": NAN,
    "None": None,
    "text": "1 GB",
    "bytes": b"8",
}

POSITIONS: Mapping[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "list": lambda x: x.tolist(),
    "two axes": lambda x: x[0],
    "one number each": lambda x: x[..., :1],
    "integers": lambda x: x.long(),
    "outside": lambda x: x + 3,
    "not a number": lambda x: x * NAN,
    "infinite": lambda x: x + INF,
    "other batch": lambda x: torch.cat((x, x)),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
}


def arguments(case: Case) -> Arguments:
    """Return a sound call."""
    image, features, values = case.maps()
    return {"image": image, "features": features, "output_size": case.size, "values": values}


def mistakes(case: Case) -> dict[str, Callable[[], Any]]:
    """Return calls that must be refused, by what is wrong with them."""
    model, good = case.model, arguments(case)
    calls: dict[str, Callable[[], Any]] = {}
    for word, size in SIZES.items():
        calls[f"output_size {word}"] = lambda size=size: model(**good | {"output_size": size})
    for name in ("image", "features", "values"):
        like = good[name] if good[name] is not None else good["features"]
        for word, change in TENSORS.items():
            if (name, word) == ("values", "None"):
                continue
            calls[f"{name} {word}"] = lambda name=name, like=like, change=change: model(
                **good | {name: change(like)}
            )
    if model.info.abilities.tiles:
        for word, budget in BUDGETS.items():
            calls[f"max_bytes {word}"] = lambda budget=budget: list(
                model.tiles(**good, max_bytes=budget)
            )
        calls["tiles output_size infinite"] = lambda: list(
            model.tiles(**good | {"output_size": (INF, 4)})
        )
    coords = torch.zeros(case.batch, 3, 2)
    if model.info.abilities.query:
        for word, change in POSITIONS.items():
            calls[f"coords {word}"] = lambda change=change: model.query(
                coords=change(coords), **good
            )
    else:
        calls["query"] = lambda: model.query(coords=coords, **good)
    return calls


def check_mistake(case: Case, what: str, call: Callable[[], Any]) -> Refused:
    """Make a wrong call; anything but a quick refusal is a finding."""
    start = time.process_time()
    refused = judged(case, call)
    seconds = time.process_time() - start
    if refused is None:
        raise Finding(case, f"accepted: {what}")
    if seconds > LONGEST_SECONDS:
        raise Finding(case, f"refused late: {what}", f"after {seconds:.1f} s")
    return refused


def sound_case(method: str) -> Case:
    """Return a small call that the method takes."""
    side = max(4, SMALLEST_GRID.get(method, 1))
    return Case(method, channels=8, image=(16, 20), grid=(side, side + 1), size=(12, 15))
