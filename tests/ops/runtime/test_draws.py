"""Draws from a generator of one's own: torch's own numbers, and the global generator untouched."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from upfeat.ops.runtime import DrawsFrom


def draws() -> list[torch.Tensor]:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4), nn.Linear(4, 5))
    nn.init.trunc_normal_(layers[2].weight, std=0.02)
    nn.init.kaiming_normal_(layers[0].weight)
    values = torch.randn(3, 4), torch.rand(2), torch.randint(9, (4,)), torch.randperm(5)
    lowrank = torch.pca_lowrank(torch.arange(60.0).view(10, 6).sin(), q=3)
    dropped = F.dropout2d(torch.ones(2, 8, 3, 3), 0.5)
    takes_generator = hasattr(torch.ops.aten.rand_like, "generator")  # not in PyTorch 2.6
    like = torch.rand_like(values[0]) if takes_generator else torch.empty_like(values[0]).uniform_()
    return [*layers.parameters(), *values, *lowrank, dropped, like]


def test_numbers_are_those_of_the_global_generator() -> None:
    torch.manual_seed(4)
    expected = draws()
    state = torch.get_rng_state()
    with DrawsFrom(torch.Generator().manual_seed(4)):
        actual = draws()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_that_is_given_stays() -> None:
    own, outer = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    with DrawsFrom(outer):
        found = torch.rand(3, generator=own)
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(1)))
    assert outer.get_state().equal(torch.Generator().manual_seed(2).get_state())


def test_other_threads_keep_the_global_generator() -> None:
    torch.manual_seed(6)
    expected = torch.rand(3)
    torch.manual_seed(6)
    found = []
    with DrawsFrom(torch.Generator()):
        thread = threading.Thread(target=lambda: found.append(torch.rand(3)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_refuses_what_takes_no_generator() -> None:
    with (
        DrawsFrom(torch.Generator()),
        pytest.raises(RuntimeError, match="draws from the global generator"),
    ):
        torch.native_dropout(torch.ones(3), 0.5, True)
