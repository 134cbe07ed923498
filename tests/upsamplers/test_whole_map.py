"""Methods that compute their output as a whole: how the contract calls them."""

import pytest
import torch
from torch import Tensor, nn

from upfeat.errors import UnsupportedError
from upfeat.ops import stream
from upfeat.upsamplers import UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.base import Upsampler


class Guided(WholeMapUpsampler):
    """Values of one cell, scaled by a convolution of the image; it notes how it is called."""

    info = UpsamplerInfo(name="guided", summary="For tests.")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.calls: list[tuple[int, type, bool, bool]] = []

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        guide = self.conv(stream.lazy(image)).relu()
        call = (len(image), type(guide), values is features, torch.is_grad_enabled())
        self.calls.append(call)
        return guide[:, :, 0 : output_size[0]] * values


class Streamed(Guided):
    streams = True


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 12, 9), torch.randn(2, 4, 1, 1), torch.randn(2, 5, 1, 1)


@pytest.mark.parametrize("kind", [Guided, Streamed])
def test_outputs_with_and_without_a_graph_agree(kind: type[Upsampler]) -> None:
    image, features, values = inputs()
    upsampler = kind()
    for own in (None, values):
        expected = upsampler(image, features, values=own)
        assert expected.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(upsampler(image, features, values=own), expected)


def test_streams_one_image_at_a_time_where_no_graph_is_recorded() -> None:
    image, features, values = inputs()
    upsampler = Streamed()
    upsampler(image, features)
    assert upsampler.calls == [(2, Tensor, True, True)]
    upsampler.calls.clear()
    with torch.no_grad():
        upsampler(image, features)
        upsampler(image, features, values=values)
    lazy = type(stream_of(image[:1]))
    assert upsampler.calls == [(1, lazy, same, False) for same in (True, True, False, False)]


def stream_of(image: Tensor) -> object:
    with stream.bounded(1):
        return stream.lazy(image)


def test_frozen_weights_need_no_graph_and_values_still_do() -> None:
    image, features, values = inputs()
    upsampler = Streamed().requires_grad_(False)
    assert not upsampler(image, features).requires_grad
    assert upsampler.calls[0][0] == 1
    values.requires_grad_()
    upsampler(image, features, values=values).sum().backward()
    assert values.grad is not None


def test_whole_maps_have_no_pieces() -> None:
    image, features, _ = inputs()
    with pytest.raises(UnsupportedError, match="guided computes its output as a whole"):
        next(Guided().tiles(image, features))
    with pytest.raises(NotImplementedError, match="WholeMapUpsampler must implement upsample"):
        WholeMapUpsampler.upsample(WholeMapUpsampler(), image, features, (1, 1), features)
