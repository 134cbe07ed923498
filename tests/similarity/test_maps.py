"""Cosines of upsampled features with pixels and with words, against the whole upsampled map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import upfeat
from tests.tolerances import max_abs_difference
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.similarity import (
    pixel_similarity,
    segment_words,
    split_words,
    templates,
    text_encoder,
)

SIZE = (40, 56)


def pipeline(name: str, fit: str = "resize") -> upfeat.Pipeline:
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    torch.manual_seed(0)
    upsampler = upfeat.load_upsampler(name, backbone, allow_random=True)
    return upfeat.Pipeline(backbone, upsampler, fit=fit)  # type: ignore[arg-type]


def photo(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


# one that queries and tiles, one that tiles, one whose map comes whole
@pytest.mark.parametrize("name", ["kin.upfeat", "jafar.vit_compact_patch16", "lift"])
def test_similarity_is_the_cosine_of_the_upsampled_map(name: str) -> None:
    pipe = pipeline(name)
    size = (32, 48) if name == "lift" else SIZE
    encoded, pixels = pipe.encode(photo()), [(0, 0), (size[0] - 1, 17)]
    maps = pixel_similarity(pipe, encoded, pixels, size)
    whole = F.normalize(pipe.upsample(encoded, size), dim=0)
    expected = torch.stack([(whole * whole[:, r, c, None, None]).sum(0) for r, c in pixels])
    assert max_abs_difference(maps, expected) <= 1e-5
    for found, (row, col) in zip(maps, pixels, strict=True):
        assert found[row, col].item() == pytest.approx(1, abs=1e-5)
        assert found.max() <= 1


def test_padded_images_and_outside_pixels_are_refused() -> None:
    pipe = pipeline("bilinear", fit="pad")
    padded = pipe.encode(photo(30, 40))
    with pytest.raises(ValueError, match="fit='resize'"):
        pixel_similarity(pipe, padded, [(0, 0)], (30, 40))
    with pytest.raises(ValueError, match="fit='resize'"):
        segment_words(pipe, padded, (30, 40), torch.eye(2, 192))
    with pytest.raises(ValueError, match="pixel 40,0 lies outside the output of 40 rows"):
        pixel_similarity(pipe, pipe.encode(photo()), [(40, 0)], SIZE)


@pytest.mark.parametrize("name", ["kin.upfeat", "loftup.vit_compact_patch16"])
def test_every_pixel_gets_the_nearest_word(name: str) -> None:
    pipe = pipeline(name)
    encoded = pipe.encode(photo())
    text = F.normalize(encoded.features[0].flatten(1)[:, :5].T, dim=1)  # the first cells
    whole = F.normalize(pipe.upsample(encoded, SIZE), dim=0)
    cosines = torch.einsum("chw,kc->khw", whole, text)
    found = segment_words(pipe, encoded, SIZE, text)
    assert (found == cosines.argmax(0)).float().mean() > 0.999  # ties by rounding
    assert len(found.unique()) > 1
    grouped = segment_words(pipe, encoded, SIZE, text, torch.tensor([0, 0, 1, 1, 2]))
    assert torch.equal(grouped, torch.tensor([0, 0, 1, 1, 2])[found])
    sure = (100 * cosines).softmax(0).amax(0)
    middle = sure.median().item()
    unsure = segment_words(pipe, encoded, SIZE, text, threshold=middle)
    expected = found.masked_fill(sure < middle, 0)
    assert (unsure == expected).float().mean() > 0.999


def test_words() -> None:
    assert split_words(" dog,  green   grass ,") == ("dog", "green grass")
    with pytest.raises(ValueError, match="no words"):
        split_words(" , ")
    with pytest.raises(ValueError, match="dog stands twice"):
        split_words("dog, cat, dog")
    with pytest.raises(ValueError, match="at most 2 are taken"):
        split_words("a, b, c", 2)
    assert set(templates("clip7")) < set(templates("clip"))
    assert len(templates("clip7")) == 7
    with pytest.raises(UnknownNameError, match="clip8"):
        templates("clip8")


def test_a_backbone_without_a_text_space_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no text space; words want a CLIP"):
        text_encoder(upfeat.create_backbone("upfeat/vit_compact_patch16"))
