"""Talk2DINO's projection of words, on weights of the form that its repository has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import tolerance
from upfeat.errors import CheckpointError
from upfeat.evaluation.probes.talk2dino import TextProjection, read_text_projection, word_masks


def state(second: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"linear_layer": (6, 4), second: (6, 6)}
    return {
        f"{name}.{part}": torch.randn(shape if part == "weight" else shape[:1])
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("second", ["linear_layer2", "hidden_layers.0"])
def test_a_file_projects_the_mean_of_raw_embeddings(tmp_path: Path, second: str) -> None:
    own = state(second)
    torch.save(own, tmp_path / "p.pth")
    embeddings = torch.randn(3, 7, 4)
    found = read_text_projection(tmp_path / "p.pth")(embeddings)
    first = F.linear(embeddings.mean(1), own["linear_layer.weight"], own["linear_layer.bias"])
    out = F.linear(torch.tanh(first), own[f"{second}.weight"], own[f"{second}.bias"])
    torch.testing.assert_close(found, F.normalize(out, dim=1), **tolerance(torch.float32))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "p.pth")
    with pytest.raises(CheckpointError, match=r"no projection of Talk2DINO: linear_layer\.weight"):
        read_text_projection(tmp_path / "p.pth")


def test_masks_are_sigmoids_of_cosines() -> None:
    features, text = torch.randn(2, 6, 3, 4), F.normalize(torch.randn(5, 6), dim=1)
    expected = torch.sigmoid(torch.einsum("bchw,kc->bkhw", F.normalize(features, dim=1), text))
    torch.testing.assert_close(word_masks(features, text), expected, **tolerance(torch.float32))
    assert TextProjection(4, 6, hidden=0)(torch.randn(2, 3, 4)).shape == (2, 6)
