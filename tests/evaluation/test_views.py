"""Methods that look at views of the image get them in every protocol, from the right encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import upfeat
from tests.evaluation.probes import test_segmentation_crops
from tests.evaluation.protocols import test_cam, test_depth_probe, test_seg_probe, test_vos
from upfeat.data import davis, msrc
from upfeat.evaluation.methods import Method
from upfeat.evaluation.protocols.efficiency import efficiency_preset, run_efficiency
from upfeat.evaluation.protocols.faithfulness import FaithfulnessConfig, run_faithfulness
from upfeat.evaluation.protocols.seg_probe import run_seg_probe
from upfeat.evaluation.protocols.vos import run_vos
from upfeat.upsamplers.base import Abilities, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.fitted import FittedUpsampler
from upfeat.upsamplers.registry import get_class


class Viewer(FittedUpsampler, WholeMapUpsampler):
    """Bilinear; asks the backbone for the view that is the image itself, and compares."""

    info = UpsamplerInfo(
        name="viewer",
        summary="for tests",
        abilities=Abilities(mixes_values=False, universal=True),
        views=True,
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Viewer:
        return self.with_backbone(self.__dict__["_backbone"])  # shares the list of views

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        encode = self.__dict__["_backbone"]
        assert encode is not None, "no backbone was given"
        view = encode(image)
        # kept features are float16
        torch.testing.assert_close(view, features, rtol=2e-3, atol=2e-3)
        self.seen.append(view)
        return torch.nn.functional.interpolate(features, output_size, mode="bilinear")


@pytest.fixture
def viewer() -> Viewer:
    return Viewer().eval()


def folders(path: Path) -> dict[str, Path]:
    return {"out": path / "results", "cache": path / "cache"}


def test_whole_maps_and_single_pixels(viewer: Viewer, tmp_path: Path) -> None:
    backbone = upfeat.CallableBackbone(torch.nn.Conv2d(3, 8, 8, 8), dim=8, patch_size=8)
    method = Method("viewer", viewer)
    pipe = method.on(upfeat.Pipeline(backbone, input_size=(32, 48), fit="exact", cache=tmp_path))
    encoded = pipe.encode(torch.rand(3, 40, 60))
    whole = pipe.upsample(encoded, (32, 48))
    some = pipe.at(encoded, (32, 48), torch.tensor([0, 49]))
    torch.testing.assert_close(some, whole[:, (0, 1), (0, 1)].T)
    assert len(viewer.seen) == 2
    assert method.identity["views"]


@pytest.mark.parametrize("changes", [{}, {"guidance": "imagenet"}, {"resize_guidance": True}])
def test_crop_probes(
    viewer: Viewer, tmp_path: Path, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    root = test_segmentation_crops.root.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    backbone = test_segmentation_crops.backbone.__wrapped__()  # type: ignore[attr-defined]
    config = test_segmentation_crops.tiny(epochs=1, target_size=16, **changes)
    data = msrc(root, "train"), msrc(root, "val")
    run_seg_probe(config, *data, backbone, [Method("v", viewer)], **folders(tmp_path))
    assert len(viewer.seen) >= 4  # batches of training and the images of validation


def test_pixel_probes_and_faithfulness(viewer: Viewer, tmp_path: Path) -> None:
    root = test_seg_probe.root.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    backbone = test_seg_probe.backbone.__wrapped__()  # type: ignore[attr-defined]
    data, config = (msrc(root, "train"), msrc(root, "val")), test_seg_probe.tiny(steps=2)
    run_seg_probe(config, *data, backbone, [Method("v", viewer)], **folders(tmp_path))
    assert viewer.seen
    viewer.seen.clear()
    faithful = FaithfulnessConfig(probe=config, transfer=False)
    run_faithfulness(faithful, *data, backbone, [Method("v", viewer)], **folders(tmp_path))
    assert viewer.seen


def test_depth_probes(viewer: Viewer, tmp_path: Path) -> None:
    root = test_depth_probe.root.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    for config in (test_depth_probe.pixels(steps=2), test_depth_probe.crops(epochs=1)):
        backbone, method = test_depth_probe.TokenBackbone(), Method("v", viewer)
        test_depth_probe.probe(root, backbone, method, config=config)
        assert viewer.seen
        viewer.seen.clear()


def test_videos_are_seen_as_the_backbone_saw_them(viewer: Viewer, tmp_path: Path) -> None:
    root = test_vos.root.__wrapped__(tmp_path)  # type: ignore[attr-defined]
    backbone = test_vos.backbone.__wrapped__()  # type: ignore[attr-defined]
    methods, data = [Method("v", viewer)], davis(root, 2017, "val")
    run_vos(test_vos.tiny(), data, backbone, methods, **folders(tmp_path))
    assert len(viewer.seen) == 8  # frames


def test_class_activation_maps_see_the_activations_of_their_layer(
    viewer: Viewer, tmp_path: Path
) -> None:
    backbone = test_cam.backbone.__wrapped__()  # type: ignore[attr-defined]
    data = test_cam.data.__wrapped__(tmp_path, backbone)  # type: ignore[attr-defined]
    test_cam.run(data, backbone, tmp_path, Method("v", viewer), config=test_cam.tiny(limit=1))
    assert viewer.seen


def test_efficiency(viewer: Viewer, tmp_path: Path) -> None:
    backbone = upfeat.CallableBackbone(torch.nn.Conv2d(3, 8, 8, 8), dim=8, patch_size=8)
    small = {"cells": ((32, 4, 32),), "warmup": 1, "repeats": 1, "memory": False}
    together = efficiency_preset("loftup", **small, operations=False)
    run_efficiency(together, [Method("v", viewer)], backbone=backbone, out=tmp_path)
    assert len(viewer.seen) == 2
    alone = efficiency_preset("naf", **small, passes=["forward"])
    result = run_efficiency(alone, [Method("v", viewer)], backbone=backbone, out=tmp_path)[0]
    assert "through the backbone" in result.details["failures"]["forward_32"]


def test_featup_implicit_declares_its_views() -> None:
    names = [name for name in upfeat.list_upsamplers() if get_class(name).info.views]
    assert names == ["featup_implicit"]
