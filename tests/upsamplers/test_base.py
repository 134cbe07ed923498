"""The one rule of the contract: when a method runs as a plain network, and when by row strips."""

import torch

import upfeat
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.rows import needed_graphs


def paths(upsampler: Upsampler, *, values: bool = False, image: bool = False) -> tuple[bool, bool]:
    """Whether encoder and decoder run as plain networks for these gradients."""
    picture = torch.rand(1, 3, 16, 16, requires_grad=image)
    features = torch.rand(1, 8, 2, 2)
    mixed = torch.rand(1, 8, 2, 2, requires_grad=values)
    return needed_graphs(upsampler, picture, features, mixed)


def test_the_plain_network_runs_exactly_where_a_graph_is_recorded() -> None:
    upsampler = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=16)
    assert paths(upsampler) == (True, True)
    with torch.no_grad():
        assert paths(upsampler, values=True, image=True) == (False, False)
    upsampler.requires_grad_(False)
    assert paths(upsampler) == (False, False)
    assert paths(upsampler, values=True) == (False, True)
    assert paths(upsampler, image=True) == (True, True)


def test_training_with_batch_norm_runs_the_plain_network_without_a_graph_too() -> None:
    upsampler = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=16)
    type(upsampler).whole_in_training = True
    try:
        with torch.no_grad():
            assert paths(upsampler.train()) == (True, True)
            assert paths(upsampler.eval()) == (False, False)
    finally:
        del type(upsampler).whole_in_training
