"""Where class-agnostic masks of training images come from.

A *mask source* gives the masks of a record: SA-1B's json files, label maps of human annotators,
superpixels; SAM is in ``sam_masks``, the cache on disk in ``mask_cache``.
"""

import fnmatch
import glob
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from upfeat.data.layouts import PathLike
from upfeat.data.mask_sets import LabelMasks, Masks, RleMasks, read_labels
from upfeat.data.records import FilePart, ImageRecord
from upfeat.data.sizes import resolve_size
from upfeat.data.transforms import CropGeometry
from upfeat.errors import check_choice, import_optional


class MaskSource(Protocol):
    """What gives the masks of a record.

    Attributes:
        name: identifies the masks with all settings; equal names mean equal masks.
    """

    @property
    def name(self) -> str:
        """Kind and settings."""
        ...

    def has(self, record: ImageRecord) -> bool:
        """Whether there are masks for this record, without reading them."""
        ...

    def __call__(self, record: ImageRecord, image: Tensor, generator: torch.Generator) -> Masks:
        """Return the masks of a record whose image is (3, H, W) in [0, 1].

        Raises:
            ValueError: they are missing or broken.
        """
        ...


@dataclass(eq=False)
class Sa1bMaskSource:
    """SA-1B's masks: the record's part ``"json"``, or the file ``NAME.json`` beside the image.

    LoftUp's released training code keeps the first 150 masks of a file (reference, section 2.8).

    Args:
        limit: masks kept of a file; None for all.
        keep: which ones: ``"first"`` in file order or the ``"largest"``; the order stays.
    """

    limit: int | None = 150
    keep: Literal["first", "largest"] = "first"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be positive or None, got {self.limit}")
        check_choice("keep", self.keep, ("first", "largest"))

    @property
    def name(self) -> str:
        """Kind and settings."""
        return "sa1b-all" if self.limit is None else f"sa1b-{self.keep}-{self.limit}"

    def has(self, record: ImageRecord) -> bool:
        """Whether the record has a json file."""
        part = _beside(record)
        return "json" in record.parts or (part is not None and part.path.is_file())

    def __call__(self, record: ImageRecord, image: Tensor, generator: torch.Generator) -> RleMasks:
        """Read the masks; image and generator are not used."""
        part = record.parts.get("json") or _beside(record)
        if part is None:
            raise ValueError(f"{record.name} has no member .json with masks in {record.image.path}")
        try:
            return RleMasks.from_json(part.read(), self.limit, self.keep)
        except ValueError as error:
            raise ValueError(f"masks of {record.name} ({part}): {error}") from error


def _beside(record: ImageRecord) -> FilePart | None:
    """Return NAME.json beside an image that is a file of its own."""
    if record.image.size is not None:
        return None
    return FilePart(record.image.path.with_suffix(".json"))


class LabelMaskSource:
    """Label images: each value is a region. Of several annotators one is drawn by the generator.

    BSDS500: ``LabelMaskSource("bsds500/segmentations/train", "{stem}_*.png")``.

    Args:
        root: folder of the label images; None takes the record's part ``part`` instead.
        pattern: name of an image's label files below ``root``; ``{stem}`` and ``{name}`` stand for
            the last part and the whole of the record's name, ``*`` in the file name finds several
            annotators. Folders are listed once: files that are added later are not seen.
        ignore: values that are no region.
        part: role of the label image in the record, such as ``"label"`` (lists) or ``"png"`` (tar
            shards).
    """

    def __init__(
        self,
        root: PathLike | None = None,
        pattern: str = "{stem}.png",
        *,
        ignore: Collection[int] = (),
        part: str = "label",
    ) -> None:
        if glob.has_magic(pattern.rpartition("/")[0]):
            raise ValueError(f"wildcards may stand in the file name only, got {pattern!r}")
        self.root = None if root is None else Path(root).expanduser()
        self.pattern = pattern
        self.ignore = tuple(ignore)
        self.part = part
        self._listings: dict[Path, list[str]] = {}

    @property
    def name(self) -> str:
        """Kind and settings."""
        what = f"part-{self.part}" if self.root is None else self.pattern
        return "-".join(["labels", what, *(f"without{value}" for value in self.ignore)])

    def has(self, record: ImageRecord) -> bool:
        """Whether the record has a label image."""
        return bool(self.files(record))

    def files(self, record: ImageRecord) -> list[FilePart]:
        """Return the label images of a record, one for each annotator, sorted."""
        if self.root is None:
            return [record.parts[self.part]] if self.part in record.parts else []
        parent, _, last = self._filled(self.pattern, record.name).rpartition("/")
        folder = self.root / parent
        if not glob.has_magic(self.pattern):
            return [FilePart(folder / last)] if (folder / last).is_file() else []
        fixed = self._filled(re.split(r"[*?[]", self.pattern)[0], record.name).rpartition("/")[2]
        filled = self._filled(self.pattern, glob.escape(record.name)).rpartition("/")[2]
        names = self._listing(folder)
        # Names that begin alike stand together in the sorted listing.
        last = fixed + chr(sys.maxunicode)
        alike = names[bisect_left(names, fixed) : bisect_left(names, last)]
        return [FilePart(folder / name) for name in alike if fnmatch.fnmatchcase(name, filled)]

    @staticmethod
    def _filled(pattern: str, name: str) -> str:
        stem = name.rpartition("/")[2]
        return pattern.replace("{stem}", stem).replace("{name}", name)

    def _listing(self, folder: Path) -> list[str]:
        if folder not in self._listings:
            self._listings[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
        return self._listings[folder]

    def __call__(
        self, record: ImageRecord, image: Tensor, generator: torch.Generator
    ) -> LabelMasks:
        """Read one of the label images; the generator draws which."""
        files = self.files(record)
        if not files:
            where = f"part {self.part!r}" if self.root is None else f"{self.root}/{self.pattern}"
            raise ValueError(f"{record.name} has no label image ({where})")
        chosen = files[int(torch.randint(len(files), (), generator=generator))]
        try:
            return LabelMasks(read_labels(chosen.read()), self.ignore)
        except ValueError as error:
            raise ValueError(f"labels of {record.name} ({chosen}): {error}") from error


class SuperpixelMaskSource:
    """Superpixels by scikit-image: masks without annotators and without a model.

    Args:
        method: ``"slic"`` (Achanta et al., TPAMI 2012; even pieces) or ``"felzenszwalb"``
            (Felzenszwalb and Huttenlocher, IJCV 2004; pieces follow large regions).
        segments: number of pieces that slic aims at.
        compactness: slic's weight of nearness against colour.
        scale, sigma, min_size: Felzenszwalb's preference for large pieces, blur before, and
            smallest piece in pixels.
        max_side: larger images are reduced to this longer side first; None for no limit.
    """

    def __init__(
        self,
        method: Literal["slic", "felzenszwalb"] = "felzenszwalb",
        *,
        segments: int = 64,
        compactness: float = 10.0,
        scale: float = 300.0,
        sigma: float = 0.8,
        min_size: int = 100,
        max_side: int | None = 512,
    ) -> None:
        check_choice("method", method, ("slic", "felzenszwalb"))
        self.method = method
        self.settings: Mapping[str, float] = (
            {"n_segments": segments, "compactness": compactness}
            if method == "slic"
            else {"scale": scale, "sigma": sigma, "min_size": min_size}
        )
        self.max_side = max_side

    @property
    def name(self) -> str:
        """Kind and settings."""
        values = [f"{value:g}" for value in self.settings.values()]
        return "-".join([self.method, *values, f"max{self.max_side}" if self.max_side else "full"])

    def has(self, record: ImageRecord) -> bool:
        """Every image has superpixels."""
        return True

    def __call__(
        self, record: ImageRecord, image: Tensor, generator: torch.Generator
    ) -> LabelMasks:
        """Compute the pieces of the image; record and generator are not used."""
        needed = ("scikit-image", "train", "superpixel masks")
        segmentation = import_optional("skimage.segmentation", *needed)
        given = (image.shape[1], image.shape[2])
        if self.max_side is not None and max(given) > self.max_side:
            size = resolve_size(self.max_side / max(given), given)
            image = CropGeometry(size, 0, 0, size).image(image)
        # (3, H, W) -> (H, W, 3)
        pixels = image.permute(1, 2, 0).cpu().numpy().astype(np.float64)
        options: dict[str, Any] = dict(self.settings)
        if self.method == "slic":
            options["start_label"] = 0
        labels = getattr(segmentation, self.method)(pixels, channel_axis=-1, **options)
        # No image of a sensible size has more pieces than uint16 can number.
        return LabelMasks(labels.astype(np.uint16 if labels.max() < 65536 else np.int32))


class FirstOfMaskSource:
    """The first of several sources, in order of preference, that has masks for a record.

    Human masks where there are some, superpixels elsewhere:
    ``FirstOfMaskSource([LabelMaskSource(...), SuperpixelMaskSource()])``.
    """

    def __init__(self, sources: Sequence[MaskSource]) -> None:
        if not sources:
            raise ValueError("FirstOfMaskSource needs at least one source")
        self.sources = list(sources)

    @property
    def name(self) -> str:
        """The names of all sources."""
        return "_or_".join(source.name for source in self.sources)

    def has(self, record: ImageRecord) -> bool:
        """Whether any source has masks."""
        return any(source.has(record) for source in self.sources)

    def __call__(self, record: ImageRecord, image: Tensor, generator: torch.Generator) -> Masks:
        """Take the masks of the first source that has some, else those of the last source."""
        for source in self.sources[:-1]:
            if source.has(record):
                return source(record, image, generator)
        return self.sources[-1](record, image, generator)
