"""Labels drawn on a photo as the camera stored it, sideways, while the photo is read upright."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from upfeat.data import (
    CropTransform,
    LabelMaskSource,
    TrainingImages,
    image_folder,
    read_image,
)
from upfeat.data.depth import DepthData, DepthFile, DepthMapFolder
from upfeat.data.mask_sets import LabelMasks, RleMasks, TurnedMasks, mask_runs
from upfeat.data.objects import ClassifiedFile, ClassifiedImages
from upfeat.data.opening import turned
from upfeat.data.segmentation import LabelledFile, SegmentationData
from upfeat.data.sets.bsds500 import RegionData, RegionFile
from upfeat.data.tar_shards import TarRecords
from upfeat.data.training_images import SampleKey
from upfeat.data.video import VideoData, VideoSequence

SIDEWAYS = (5, 6, 7, 8)
STORED = np.zeros((30, 48), np.uint8)  # (height, width) as the camera stored them
STORED[:10, :20] = 1
STORED[12:, 30:] = 2


def _write(folder: Path, orientation: int) -> tuple[Path, Path]:
    """A photo whose red shows the label, and the label, both as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo, label = folder / "photo.png", folder / "labels" / "photo.png"
    label.parent.mkdir(exist_ok=True)
    pixels = np.dstack([STORED * 100, np.zeros_like(STORED), np.zeros_like(STORED)])
    Image.fromarray(pixels).save(photo, exif=exif)
    Image.fromarray(STORED).save(label)
    return photo, label


def _red(image: Tensor) -> Tensor:
    return (image[0] * 2.55).round().long()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_maps_turn_as_images_do(tmp_path: Path, orientation: int) -> None:
    photo, _ = _write(tmp_path, orientation)
    assert torch.equal(turned(torch.from_numpy(STORED), orientation), _red(read_image(photo)))


@pytest.mark.parametrize("orientation", SIDEWAYS)
def test_every_set_turns_its_labels(tmp_path: Path, orientation: int) -> None:
    photo, label = _write(tmp_path, orientation)
    segmentation = SegmentationData("a", ("x", "y", "z"), 255, (LabelledFile("a", photo, label),))
    assert torch.equal(segmentation[0].label, _red(segmentation[0].image))
    depth = DepthData("a", (DepthFile("a", photo, label),), 1.0)
    assert torch.equal(depth[0].depth.long(), _red(depth[0].image))
    regions = RegionData("a", (RegionFile("a", photo, (label,)),))
    assert torch.equal(regions[0].regions[0], _red(regions[0].image))
    video, sequence = VideoData("a", ()), VideoSequence("v", (photo,), (label,))
    assert torch.equal(video.read_mask(sequence, 0), _red(video.read_frame(sequence, 0)))
    Image.fromarray((STORED > 1).astype(np.uint8)).save(label)
    classified = ClassifiedImages("a", ("x",), (ClassifiedFile("a", photo, 0, label),))
    mask = classified[0].mask
    assert mask is not None
    assert torch.equal(mask, _red(classified[0].image) > 1)


@pytest.mark.parametrize("orientation", SIDEWAYS)
def test_upright_labels_stay(tmp_path: Path, orientation: int) -> None:
    photo, label = _write(tmp_path, orientation)
    upright = turned(torch.from_numpy(STORED), orientation)
    Image.fromarray(upright.numpy()).save(label)
    data = SegmentationData("a", ("x", "y", "z"), 255, (LabelledFile("a", photo, label),))
    assert torch.equal(data[0].label, upright.long())


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_swapped_label_of_an_upright_image_is_refused(tmp_path: Path, orientation: int) -> None:
    photo, label = _write(tmp_path, orientation)
    Image.fromarray(np.ascontiguousarray(STORED.T)).save(label)
    data = SegmentationData("a", ("x", "y", "z"), 255, (LabelledFile("a", photo, label),))
    with pytest.raises(ValueError, match=r"is \(48, 30\), its image .* \(30, 48\)"):
        data[0]


@pytest.mark.parametrize("orientation", SIDEWAYS)
def test_masks_turn_as_maps_do(orientation: int) -> None:
    labels = turned(torch.from_numpy(STORED), orientation)
    expected = torch.stack([labels == value for value in (0, 1, 2)])
    stored = [value == STORED for value in (0, 1, 2)]
    for masks in (LabelMasks(STORED), RleMasks((30, 48), [mask_runs(one) for one in stored])):
        seen = TurnedMasks(masks, orientation)
        assert seen.size == (48, 30)
        assert len(seen) == 3
        assert torch.equal(seen.dense(), expected)
    with pytest.raises(ValueError, match="5 to 8"):
        TurnedMasks(masks, 3)


@pytest.mark.parametrize("orientation", SIDEWAYS)
@pytest.mark.parametrize("packed", [False, True])
def test_training_images_turn_masks_and_depth(
    tmp_path: Path, orientation: int, packed: bool
) -> None:
    photo, label = _write(tmp_path, orientation)
    np.save(label.with_suffix(".npy"), STORED.astype(np.float32))
    records = image_folder(photo)
    if packed:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(photo, "photo.png")
        records = TarRecords([tmp_path / "a.tar"])
    images = TrainingImages(
        records,
        CropTransform(24, 24),
        masks=LabelMaskSource(label.parent),
        depth=DepthMapFolder(label.parent, "{stem}.npy"),
    )
    for epoch in range(3):
        sample = images[SampleKey(0, epoch)]
        depth, red = sample["depth"][0], _red(sample["image"])
        inside = red == depth  # interpolated at borders
        assert inside.float().mean() > 0.9
        assert not sample["skipped"]
        covered = sum(mask for mask in sample["masks"].long())
        assert (covered == 1).all()
        for mask in sample["masks"]:
            assert (mask == (depth == depth[mask][0])).float().mean() > 0.97
