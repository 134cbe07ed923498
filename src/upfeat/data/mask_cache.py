"""Computed masks on disk: one file an image, whole or absent, so a run can stop at any time."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upfeat._files import OwnFiles, write_bytes
from upfeat.data.images import encode_png
from upfeat.data.mask_sets import LabelMasks, Masks, RleMasks, read_labels
from upfeat.data.masks import MaskSource, PathLike
from upfeat.data.records import ImageRecord, Records

logger = logging.getLogger(__name__)


class CachedMaskSource:
    """Masks of another source, computed once an image and then read from disk.

    A file's name is the hash of the image file's bytes, its folder the source's name with all
    settings: another image or setting is another file. Maps of regions are PNGs, overlapping masks
    JSON in SA-1B's layout. The source must not depend on the generator (superpixels and SAM do
    not).

    Args:
        source: what computes the masks.
        folder: where the files go; created if need be.

    Attributes:
        hits, misses: how often a file was there, in this process.
    """

    def __init__(self, source: MaskSource, folder: PathLike) -> None:
        self.source = source
        self.root = Path(folder).expanduser()
        self.hits = 0
        self.misses = 0

    @property
    def name(self) -> str:
        """The source's name: the masks are the same."""
        return self.source.name

    def has(self, record: ImageRecord) -> bool:
        """Whether the source has masks for this record."""
        return self.source.has(record)

    def file_stem(self, record: ImageRecord) -> Path:
        """Return the path of a record's cache file, without suffix."""
        digest = hashlib.blake2b(record.image.read(), digest_size=16).hexdigest()
        settings = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
        readable = re.sub(r"[^\w.-]+", "-", self.name)[:80]
        # 256 folders keep a million files listable.
        return self.root / f"{readable}-{settings}" / digest[:2] / digest[2:]

    def stored(self, record: ImageRecord) -> Masks | None:
        """Return the masks that are on disk, or None; an unreadable file counts as absent."""
        stem = self.file_stem(record)
        decoders: dict[str, Callable[[bytes], Masks]] = {
            ".png": lambda png: LabelMasks(read_labels(png)),
            ".json": RleMasks.from_json,
        }
        for suffix, decode in decoders.items():
            path = stem.with_suffix(suffix)
            try:
                return decode(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                logger.warning("%s is not readable (%s); computing it again", path, error)
        return None

    def __call__(self, record: ImageRecord, image: Tensor, generator: torch.Generator) -> Masks:
        """Return the masks from disk, or compute and store them."""
        masks = self.stored(record)
        if masks is not None:
            self.hits += 1
            return masks
        self.misses += 1
        masks = self.source(record, image, generator)
        suffix, content = _encoded(masks)
        path = self.file_stem(record).with_suffix(suffix)
        # Maps of regions are pictures: they must not count as images of a folder above them.
        OwnFiles(path.parent.parent).claim_all("the cache of masks")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        return masks


def _encoded(masks: Masks) -> tuple[str, bytes]:
    if isinstance(masks, RleMasks):
        return ".json", masks.to_json()
    if isinstance(masks, LabelMasks) and not masks.ignore and masks.labels.max() < 65536:
        labels = masks.labels
        if labels.min() >= 0:
            small = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
            return ".png", encode_png(small)
    raise ValueError(
        f"cannot store {type(masks).__name__}: only run lengths and maps of region numbers from 0 "
        "to 65535 without ignored ones; label files need no cache"
    )


@dataclass
class MaskCacheSummary:
    """What :func:`fill_mask_cache` did: numbers of images, and messages by an image's name."""

    computed: int = 0
    found: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def fill_mask_cache(
    records: Records | Sequence[ImageRecord],
    source: CachedMaskSource,
    on_record: Callable[[ImageRecord], None] | None = None,
) -> MaskCacheSummary:
    """Compute the masks of every record that has none yet; broken images are reported and skipped.

    It may be interrupted and called again: what is done is found, in any order and also by several
    processes at a time, each with a part of the records.
    """
    summary = MaskCacheSummary()
    generator = torch.Generator()
    for record in records:
        try:
            if source.stored(record) is not None:
                summary.found += 1
            else:
                source(record, record.read_image(), generator)
                summary.computed += 1
        except ValueError as error:
            logger.warning("no masks for %s: %s", record.name, error)
            summary.failed[record.name] = str(error)
        if on_record is not None:
            on_record(record)
    return summary
