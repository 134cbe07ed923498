"""FeatUp's training signals: golden terms, and training of what it is for."""

from pathlib import Path

import pytest
import torch
from torch import nn

import upfeat
from tests.goldens import golden_state, load_golden
from tests.objectives.setups import CROPS, DIM, tiny_backbone, tiny_batch
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.errors import UnsupportedError
from upfeat.layers import ScaleNet
from upfeat.objectives import MultiViewConfig, MultiViewReconstructionConfig
from upfeat.objectives.losses import energy, entropy, project, total_variation
from upfeat.objectives.multi_view import crf_loss, draw_pixels
from upfeat.ops.pointwise.norms import magnitude
from upfeat.upsamplers import WholeMapUpsampler


def test_golden_terms(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "featup_terms.safetensors")
    features = tensors["input.feats"]
    found = {
        "crf": crf_loss(features, tensors["input.guidance"], tensors["input.coords"]),
        "entropy": entropy(tensors["input.kernel"]),
        "magnitude": magnitude(features),
        "tv": total_variation(features),
        "tv_of_magnitude": total_variation(magnitude(features)),
    }
    differences = {
        name: max_abs_difference(value, tensors[f"output.{name}"]) / tensors[f"output.{name}"].max()
        for name, value in found.items()
    }
    assert max(differences.values()) <= GOLDEN_ATOL


def test_golden_reconstruction(golden_dir: Path) -> None:
    tensors, meta = load_golden(golden_dir / "losses" / "featup_jbu_reconstruction.safetensors")
    down, target, projection = (tensors[f"input.{name}"] for name in ("down", "target", "proj"))
    views = meta["arguments"]["n_jitters"]
    error = (project(down, projection) - project(target, projection)).square()
    scale = ScaleNet(target.shape[1])
    scale.load_state_dict(golden_state(tensors, "net."))
    with torch.no_grad():
        loss = scale.error(error, target) / views
    assert max_abs_difference(loss, tensors["output.loss"]) <= GOLDEN_ATOL
    plain = error.mean() / views
    assert max_abs_difference(plain, tensors["output.loss_without_uncertainty"]) <= GOLDEN_ATOL


def test_crf_by_hand() -> None:
    features = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    guidance = torch.zeros(1, 3, 1, 2)
    place = 0.5**2
    affinity = 10 * torch.tensor(-place / 0.2).exp() + 3 * torch.tensor(-place / 0.01).exp()
    loss = crf_loss(features, guidance, torch.tensor([[0, 0], [0, 1]]))
    torch.testing.assert_close(loss, affinity / 2)  # two of the four pairs differ, by 1
    with pytest.raises(ValueError, match="share batch and size"):
        crf_loss(features, guidance[..., :1], draw_pixels(torch.Generator(), (1, 2), 3))


@pytest.mark.parametrize("downsampler", ["attention", "simple"])
@pytest.mark.parametrize("name", ["featup_jbu", "ifa"])
def test_two_steps(name: str, downsampler: str) -> None:
    torch.manual_seed(0)
    backbone, batch = tiny_backbone(), tiny_batch(2, side=32)
    model = upfeat.create_upsampler(name, feature_dim=DIM).train()
    views = CROPS.model_copy(
        update={
            "downsampler": downsampler,
            "entropy_weight": 0.1 if downsampler == "simple" else 0.0,
            "tv_weight": 0.01,
        }
    )
    objective = MultiViewReconstructionConfig(multi_view=views).build()
    objective.prepare(model, backbone, (32, 32))
    parameters = [*model.parameters(), *objective.parameters()]
    before = [p.clone() for p in parameters]
    optimizer = torch.optim.NAdam(parameters, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        terms = objective.step(batch, backbone, model, generator)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        assert all(torch.isfinite(term) for term in terms.values())
    expected = {"loss", "reconstruction", "crf", "total_variation"}
    assert set(terms) == expected | ({"entropy"} if downsampler == "simple" else set())
    moved = [not torch.equal(a, b) for a, b in zip(parameters, before, strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_a_map_that_moves_with_the_image_is_perfect() -> None:
    """With features that are means of patches, the image itself is the upsampled map."""
    backbone = upfeat.CallableBackbone(
        nn.AvgPool2d(4), dim=3, patch_size=4, image_mean=(0.0,) * 3, image_std=(1.0,) * 3
    )

    class Copy(WholeMapUpsampler):
        info = upfeat.UpsamplerInfo(name="copy", summary="for tests")

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def upsample(self, image, features, output_size, values):
            return self.gain * image

    views = MultiViewConfig(
        jitter="crop", zoom=0.5, downsampler="simple", projection=None, tv_weight=0.0
    )
    model, objective = Copy(), MultiViewReconstructionConfig(multi_view=views).build()
    objective.prepare(model, backbone)
    batch = {"image": torch.rand(2, 3, 24, 32)}
    loss = objective.step(batch, backbone, model, torch.Generator())["loss"]
    assert loss.item() < 1e-10
    with torch.no_grad():
        model.gain.mul_(1.2)
    assert objective.step(batch, backbone, model, torch.Generator())["loss"].item() > 1e-3


def test_bad_settings() -> None:
    for options, message in (
        ({"jitter": "none"}, "jitter"),
        ({"zoom": 1.5}, "zoom"),
        ({"downsampler": "none"}, "downsampler"),
        ({"entropy_weight": 1.0}, "entropy_weight"),
        ({"views": 0}, "views"),
        ({"max_pad": -1}, "max_pad"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiViewConfig(**options)  # type: ignore[arg-type]
    objective = MultiViewReconstructionConfig().build()
    model = upfeat.create_upsampler("featup_jbu", feature_dim=DIM)
    with pytest.raises(ValueError, match="max_pad=20"):
        objective.prepare(model, tiny_backbone(), (16, 16))
    with pytest.raises(UnsupportedError, match="one backbone"):
        objective.prepare(model, [tiny_backbone(), tiny_backbone(seed=1)])


def test_energy_is_the_square_of_the_magnitude() -> None:
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(energy(x), magnitude(x).square())
