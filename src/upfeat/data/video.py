"""Videos with object masks: what the loaders of video sets give. Sizes are ``(height, width)``."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from upfeat.data.images import image_size, read_image
from upfeat.data.layouts import hash_files, lay_on_image, read_numbers, spread

__all__ = ["VideoData", "VideoSequence"]

VOID = 255


class VideoSequence(NamedTuple):
    """The frames of one video in order, and for each its mask file or None."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]


@dataclass(frozen=True)
class VideoData:
    """One split of a video set: names of files, read when asked for.

    Attributes:
        name: of the set and split, such as ``"davis2017/val"``.
        sequences: the videos, in a fixed order.
        one_object: every number in a mask but 0 belongs to the one object of the video, as in
            DAVIS 2016; else the numbers are objects and 255 is void, which counts as background.
    """

    name: str
    sequences: tuple[VideoSequence, ...]
    one_object: bool = False

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> VideoSequence:
        return self.sequences[index]

    def __iter__(self) -> Iterator[VideoSequence]:
        return iter(self.sequences)

    def read_frame(self, sequence: VideoSequence, index: int) -> Tensor:
        """Return a frame (3, H, W), float32 in [0, 1].

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it cannot be read.
        """
        return read_image(sequence.frames[index])

    def read_mask(self, sequence: VideoSequence, index: int) -> Tensor:
        """Return the mask of a frame (H, W), int64: 0 background, other numbers objects.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: the frame has no mask, it cannot be read, its size is not the frame's, or
                it is the first one and holds no object.
        """
        path, frame = sequence.masks[index], sequence.frames[index]
        if path is None:
            raise ValueError(f"{self.name} has no mask for {frame}; only some frames are annotated")
        hint = "with object numbers; colours must become object numbers first"
        mask = lay_on_image(read_numbers(path, "mask", hint), path, frame, image_size(frame))
        mask = (mask != 0).long() if self.one_object else mask.masked_fill(mask == VOID, 0)
        if index == 0 and not mask.any():
            raise ValueError(
                f"{path} marks no object in the first frame; with several objects {VOID} is void "
                "(masks that say 255 for the one object are DAVIS 2016's: year=2016)"
            )
        return mask

    def object_count(self, sequence: VideoSequence) -> int:
        """Return how many different objects the first mask marks."""
        return int((self.read_mask(sequence, 0).unique() != 0).sum())

    def select(self, limit: int | None = None) -> "VideoData":
        """Return at most ``limit`` videos, evenly spread.

        Example:
            >>> from upfeat.data.video import VideoData, VideoSequence
            >>> videos = tuple(VideoSequence(name, (), ()) for name in "abcd")
            >>> [video.name for video in VideoData("set", videos).select(2)]
            ['a', 'c']
        """
        return replace(self, sequences=spread(self.sequences, 1, limit))

    def sequence_hash(self, sequence: VideoSequence) -> str:
        """Return 16 hexadecimal digits of the bytes of all frames and masks of a video."""
        masks = (path for path in sequence.masks if path is not None)
        return hash_files((*sequence.frames, *masks))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of all names and bytes: the same data gives the same."""
        digest = hashlib.blake2b(f"one_object={self.one_object}".encode(), digest_size=8)
        for sequence in self.sequences:
            names = [path.name for path in sequence.frames]
            digest.update(f"{sequence.name} {names} {self.sequence_hash(sequence)}\n".encode())
        return digest.hexdigest()
