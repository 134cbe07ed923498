"""The panel of all methods: who is shown, who is left out and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import upfeat
from upfeat.checkpoints import write_safetensors
from upfeat.viz import PCABasis, compare_upsamplers, usable_upsamplers
from upfeat.viz import comparison as module
from upfeat.viz.comparison import Candidate, SkippedMethod


@pytest.fixture
def backbone() -> upfeat.CallableBackbone:
    weight = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return upfeat.CallableBackbone(
        lambda x: F.conv2d(x, weight.to(x), stride=8), dim=16, patch_size=8, name="test/conv"
    )


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name in ("UPFEAT_WEIGHTS", "UPFEAT_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_nothing_runs_with_random_weights(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub):
        raise AssertionError(f"asked for {hub}")

    monkeypatch.setattr("upfeat._lookup.download", download)
    shown, left_out = usable_upsamplers(backbone)
    names = {candidate.name for candidate in shown}
    assert {"bilinear", "joint_bilateral", "guided_filter", "upsample_anything"} <= names
    for candidate in shown:
        untrained = next(candidate.upsampler.parameters(), None) is None
        per_image = candidate.upsampler.info.abilities.per_image
        assert untrained or per_image or "." in candidate.name
    reasons = {left.name: left.reason for left in left_out}
    assert reasons["jafar"] == "no published weights for this backbone"
    assert "$UPFEAT_WEIGHTS" in reasons["anyup"]
    assert "upfeat train" in reasons["liif"]
    assert "together with a task" in reasons["sapa"]
    every = {name.partition(".")[0] for name in names} | set(reasons)
    assert every == set(upfeat.list_upsamplers())


def test_weights_of_the_folder_are_taken(backbone, no_weights) -> None:
    state = upfeat.create_upsampler("naf", dim=32, kernel_size=3, heads_rope=2).state_dict()
    write_safetensors(no_weights / "naf_release.safetensors", state)
    ((candidate,), left_out) = usable_upsamplers(backbone, "naf")
    assert candidate.name == "naf.release"
    assert not left_out
    write_safetensors(no_weights / "naf_release.safetensors", {"other": torch.zeros(1)})
    shown, (left,) = usable_upsamplers(backbone, "naf")
    assert not shown
    assert "naf" in left.reason


def test_a_backbone_of_the_same_width_does_not_get_anothers_weights(no_weights) -> None:
    other = upfeat.CallableBackbone(lambda x: x, dim=384, patch_size=14, name="test/other")
    state = upfeat.create_upsampler("jafar", feature_dim=384).state_dict()
    write_safetensors(no_weights / "jafar_dinov2_vits14.safetensors", state)
    assert usable_upsamplers(other, "jafar")[1][0].reason.startswith("no published weights")
    name = "timm/vit_small_patch14_dinov2.lvd142m"
    own = upfeat.CallableBackbone(lambda x: x, dim=384, patch_size=14, name=name)
    assert [c.name for c in usable_upsamplers(own, "jafar")[0]] == ["jafar.dinov2_vits14"]


def test_pictures_share_a_basis_and_the_pipelines_numbers(backbone) -> None:
    image = torch.rand(3, 45, 60)
    shown, _ = usable_upsamplers(backbone, "*[bn][ie][lac]*r*")
    started: list[str] = []
    result = compare_upsamplers(backbone, image, shown, on_start=started.append)
    names = [entry.name for entry in result.entries]
    assert names == started
    assert {"bilinear", "nearest"} <= set(names)
    for entry in result.entries:
        pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler(entry.name))
        basis = PCABasis.fit(pipe.low(image))
        expected = basis.colors(basis.project(pipe(image).high))
        assert (entry.picture.int() - expected.int()).abs().max() <= 1
        assert entry.seconds > 0
    assert result.input_size == result.output_size == (45, 60)
    other = compare_upsamplers(backbone, image, shown, basis=result.basis, output_size=(9, 12))
    assert other.basis is result.basis
    assert other.entries[0].picture.shape == (3, 9, 12)


def test_methods_that_fit_each_image_run_on_shared_features(backbone) -> None:
    quick = Candidate("upsample_anything", upfeat.create_upsampler("upsample_anything", steps=1))
    result = compare_upsamplers(backbone, torch.rand(3, 24, 32), [quick])
    assert [entry.name for entry in result.entries] == ["upsample_anything"]


def test_large_images_are_not_optimised(backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_IMAGE_PIXELS", 24 * 32)
    up = Candidate("upsample_anything", upfeat.create_upsampler("upsample_anything", steps=1))
    result = compare_upsamplers(backbone, torch.rand(3, 24, 40), [up], output_size=(8, 8))
    assert not result.entries
    assert "up to 768 pixels" in result.left_out[0].reason


def test_large_photos_are_compared_at_a_bounded_size(backbone, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGEST_SIDE", 16)
    (near,), _ = usable_upsamplers(backbone, "nearest")
    assert compare_upsamplers(backbone, torch.rand(3, 32, 48), [near]).output_size == (16, 24)
    asked = compare_upsamplers(backbone, torch.rand(3, 32, 48), [near], input_size=(32, 48))
    assert asked.output_size == (32, 48)


def test_what_fails_is_named_on_the_panel(backbone) -> None:
    narrow = Candidate("broken", upfeat.create_upsampler("ifa", feature_dim=7))
    (near,), _ = usable_upsamplers(backbone, "nearest")
    image = torch.rand(3, 32, 32)
    result = compare_upsamplers(
        backbone, image, [narrow, near], [SkippedMethod("jafar", "no file")]
    )
    assert [entry.name for entry in result.entries] == ["nearest"]
    assert [left.name for left in result.left_out] == ["jafar", "broken"]
    assert "feature_dim=7" in result.left_out[1].reason
    alone = compare_upsamplers(backbone, image, [near])
    assert result.panel.height > alone.panel.height  # a line for each reason
    assert result.panel.width == alone.panel.width
    below = np.asarray(result.panel)[alone.panel.height :]
    assert (below < 100).any()


def test_shortened_methods_say_so(backbone) -> None:
    (candidate,), _ = usable_upsamplers(backbone, "featup_implicit")
    full = upfeat.create_upsampler("featup_implicit", feature_dim=16).config["steps"]
    steps = candidate.upsampler.config["steps"]
    assert 0 < steps < full
    assert f"{steps} of {full} steps" in candidate.note
