"""Random calls of every method: about a minute here, an hour with ``make fuzz``."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings

import upfeat
from tests.fuzz.calls import CONTENTS, ORACLES, Case, Finding, cases, check, complaint_about, judged
from tests.fuzz.methods import methods, registered
from tests.fuzz.mistakes import check_mistake, mistakes, sound_case

pytestmark = pytest.mark.fuzz

EXAMPLES = 60
"""Of each method; a case takes 0.3 to 60 ms."""


@pytest.mark.parametrize("method", methods())
def test_random_calls(method: str) -> None:
    # A seed of its own for each method: without one, all would be given the same cases.
    @seed(zlib.crc32(method.encode()))
    @settings(max_examples=EXAMPLES, derandomize=False, suppress_health_check=list(HealthCheck))
    @given(case=cases(method))
    def run(case: Case) -> None:
        check(case)

    run()


@pytest.mark.parametrize("method", methods())
def test_mistakes_are_refused_at_once_with_a_sentence(method: str) -> None:
    case = sound_case(method)
    assert check(case) is None
    findings = []
    for what, call in mistakes(case).items():
        try:
            check_mistake(case, what, call)
        except Finding as finding:
            findings.append(f"{what}: {finding}")
    assert not findings, "\n".join(findings)


# -- the harness itself: a fuzz test that cannot fail says nothing ---------------------------------


def test_every_registered_method_is_called() -> None:
    assert {registered(method) for method in methods()} == set(upfeat.list_upsamplers())


class Wrong(torch.nn.Module):
    """An upsampler with a fault: what it does to the bilinear output."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.inner = fault, upfeat.create_upsampler("bilinear")

    def forward(self, image, features, size=None, values=None):
        output = self.inner(image, features, size, values)
        mixed = features if values is None else values
        if self.fault == "layouts" and not mixed.is_contiguous():
            return output + 1
        if self.fault == "batch" and len(mixed) > 1:
            return output.roll(1, 0)
        if self.fault == "float64" and mixed.dtype == torch.float32:
            return output * 1.05
        if self.fault == "gradients" and mixed.requires_grad:
            return output + 0 * mixed.sub(mixed).sqrt().sum()  # 0 * inf in the backward pass
        if self.fault == "plain":
            features[0, 0, 0, 0] += 1
        return output

    def tiles(self, image, features, size=None, values=None, *, max_bytes=1):
        for rows, tile in self.inner.tiles(image, features, size, values, max_bytes=1):
            yield rows, tile + (rows.start > 0 and self.fault == "tiles")

    def query(self, image, features, coords, values=None, output_size=None):
        width = (features if values is None else values).shape[1]
        shape = (*coords.shape[:2], width)
        return torch.full(shape, 9.0 if self.fault == "query" else torch.nan, dtype=features.dtype)


@pytest.mark.parametrize("oracle", ORACLES)
def test_each_oracle_finds_its_fault(oracle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = "bilinear" if oracle != "query" else "kin"
    case = Case(sound, oracle, batch=2, layouts=("contiguous", "channels_last", "contiguous"))
    assert check(case) is None
    monkeypatch.setattr("tests.fuzz.calls.instance", lambda *_: Wrong(oracle))
    with pytest.raises(Finding) as caught:
        check(dataclasses.replace(case, method="bilinear"))
    assert caught.value.key[:2] == ("bilinear", oracle)


def test_only_sentences_of_ours_are_refusals() -> None:
    case = Case("bilinear")

    def foreign() -> None:
        torch.nn.functional.interpolate(torch.zeros(1, 1, 2, 2), (2, 2, 2))

    for action, word in ((foreign, "ValueError of"), (lambda: 1 / 0, "raised ZeroDivisionError")):
        with pytest.raises(Finding, match=word):
            judged(case, action)
    refused = judged(case, lambda: case.model(torch.zeros(1), torch.zeros(1)))
    assert refused is not None
    assert "4 dimensions" in refused.message
    assert "N dimensions" in refused.kind
    for message in ("no", "two lines\nare none of ours", "One sentence here. Another one here."):
        assert complaint_about(message) is not None


def test_contents_fit_half_precision() -> None:
    noise = torch.randn(1, 3, 40, 40)
    assert all(make(noise).half().isfinite().all() for make in CONTENTS.values())
