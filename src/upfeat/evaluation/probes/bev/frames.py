"""Key frames as the networks read them: views of the cameras, calibration, motion, targets."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfeat.data.sets.nuscenes import DrivingData
from upfeat.evaluation.probes.bev.grid import BevGrid, draw_bev_motion
from upfeat.evaluation.probes.bev.lifting import Cameras
from upfeat.evaluation.probes.bev.losses import BevTargets
from upfeat.evaluation.probes.bev.targets import bottom_corners, draw_targets
from upfeat.evaluation.probes.bev.views import (
    SOURCE,
    Filter,
    View,
    ViewSettings,
    view_affine,
    warp_image,
)

__all__ = ["VISIBLE", "BevBatch", "BevFrames", "join_frames"]

VISIBLE = 2  # the published filter: vehicles that are visible by 40 % and more
MOST_KEPT = 8  # frames whose views do not change


class BevBatch(NamedTuple):
    """B frames.

    Attributes:
        images: (B, N, 3, H, W) in [0, 1].
        cameras: intrinsics for pixels of the padded image.
        motion: (B, 4, 4) of the grid, float32.
        targets: of all vehicles that are visible enough for the settings.
        visible: (B, 1, X, Y), 0 on vehicles that the published filter ignores.
    """

    images: Tensor
    cameras: Cameras
    motion: Tensor
    targets: BevTargets
    visible: Tensor

    def to(self, device: torch.device) -> "BevBatch":
        """Return the batch on a device."""
        return BevBatch(
            self.images.to(device),
            Cameras(*(part.to(device) for part in self.cameras)),
            self.motion.to(device),
            BevTargets(*(part.to(device) for part in self.targets)),
            self.visible.to(device),
        )


class BevFrames:
    """One split, ready for the networks.

    Args:
        data: the key frames.
        settings: of the views.
        grid: of the targets.
        min_visibility: of vehicles that count, 1 to 4.
        filter: of the images' pixels.
    """

    def __init__(
        self,
        data: DrivingData,
        settings: ViewSettings,
        grid: BevGrid,
        *,
        min_visibility: int = 1,
        filter: Filter = "nearest",
    ) -> None:
        self.data, self.settings, self.grid = data, settings, grid
        self.min_visibility, self.filter = min_visibility, filter
        self._kept: dict[int, BevBatch] = {}

    def __len__(self) -> int:
        return len(self.data)

    def load(self, index: int, generator: torch.Generator | None = None) -> BevBatch:
        """Return one frame.

        Args:
            index: of the frame.
            generator: of the random views and motion of training; None for the usual views and no
                motion.
        """
        if generator is None and index in self._kept:
            return self._kept[index]
        frame = self.data[index]
        motion = torch.eye(4).double() if generator is None else draw_bev_motion(generator)
        views, affines = [], []
        for image in frame.images:
            view = View.usual(self.settings)
            if generator is not None:
                view = View.draw(self.settings, generator)
            # The scale is that of a source of 1600 columns.
            view = view._replace(scale=view.scale * SOURCE[1] / image.shape[2])
            affine = view_affine(view, self.settings.size, image.shape[1:])
            views.append(warp_image(image, affine, self.settings.size, self.filter))
            affine[0] += self.settings.padding * affine.new_tensor([0, 0, 1])
            affines.append(affine)
        poses = torch.from_numpy(np.stack([camera.pose for camera in frame.file.cameras]))
        sensors = np.stack([camera.intrinsics for camera in frame.file.cameras])
        intrinsics = torch.stack(affines) @ torch.from_numpy(sensors)
        cameras = Cameras(
            *(part[None].float() for part in (poses[:, :3, :3], poses[:, :3, 3], intrinsics))
        )
        boxes = frame.file.boxes
        targets, seen = draw_targets(
            bottom_corners(boxes, frame.file.ego),
            boxes.visibility.tolist(),
            self.grid,
            min_visibility=self.min_visibility,
            motion=None if generator is None else motion.numpy(),
        )
        visible = (seen >= VISIBLE).float()[None, None]
        batch = BevBatch(torch.stack(views)[None], cameras, motion[None].float(), targets, visible)
        if generator is None and len(self.data) <= MOST_KEPT:
            self._kept[index] = batch
        return batch


def join_frames(frames: list[BevBatch]) -> BevBatch:
    """Return one batch of several frames."""
    if len(frames) == 1:
        return frames[0]
    return BevBatch(
        torch.cat([frame.images for frame in frames]),
        Cameras(*map(torch.cat, zip(*(frame.cameras for frame in frames), strict=True))),
        torch.cat([frame.motion for frame in frames]),
        BevTargets(*map(torch.cat, zip(*(frame.targets for frame in frames), strict=True))),
        torch.cat([frame.visible for frame in frames]),
    )
