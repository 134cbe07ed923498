"""What a store is made of before anything is computed: settings, images, shards, bytes.

A store is a folder: ``store.json`` (:class:`StoreCard`), one file or folder a shard
(``shard-00000.zarr``), with fewer channels ``basis.safetensors``, and ``failures.jsonl``. The card
is written first and a shard when it is complete, so what is there decides what is left to do.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveInt, ValidationError

import upfeat
from upfeat._files import OwnFiles, sha256_of
from upfeat._settings import Settings, Sides
from upfeat.backbones.base import Backbone
from upfeat.data import image_size
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.sizes import resolve_size
from upfeat.errors import ForeignFileError, UnknownNameError
from upfeat.extraction.bulk import Job
from upfeat.extraction.shards import ShardFile, shard_format
from upfeat.ops.runtime import TILE_BYTES
from upfeat.pipeline import Pipeline
from upfeat.upsamplers.base import Upsampler

__all__ = ["BackboneCard", "StoreCard", "StorePlan", "UpsamplerCard", "plan_store"]

FORMAT: Literal["upfeat-store-1"] = "upfeat-store-1"
CARD = "store.json"
BASIS = "basis.safetensors"
MAKER = "upfeat extract"
FEATURES = ("low", "high", "pca64")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
COMPONENTS = 64
_SHARD_IMAGES = 64  # what is lost where a run is killed

Size = int | float | Sides | None


class BackboneCard(Settings):
    """The backbone of a store: ``weights`` is the fingerprint, ``file`` where they were read."""

    name: str
    layer: int | None
    weights: str
    file: str | None
    dim: PositiveInt
    patch_size: int | float
    size_multiple: PositiveInt
    fixed_size: Sides | None
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    norm: bool | None


class UpsamplerCard(Settings):
    """The upsampler of a store; ``spec`` is None where it was no name that can be loaded."""

    spec: str | None
    name: str
    config: dict[str, Any]
    weights: str
    file: str | None


class StoreCard(Settings):
    """The content of ``store.json``.

    Attributes:
        store: the format of the shards.
        features: ``low``, ``high`` or ``pca64``.
        dtype: of the stored numbers.
        pictures: whether the images' files are kept, too.
        batch_size: images that the backbone saw together, at most.
        backbone, upsampler: what made the features and is to upsample them.
        input_size, output_size, guidance_size, fit, compute_dtype: of the pipeline.
        versions: of upfeat, torch and timm; for the record.
        shards: (key, file) of every image, shard by shard.
    """

    format: Literal["upfeat-store-1"] = FORMAT
    store: str
    features: Literal["low", "high", "pca64"]
    dtype: Literal["float16", "float32"]
    pictures: bool
    batch_size: PositiveInt
    backbone: BackboneCard
    upsampler: UpsamplerCard
    input_size: Size
    output_size: Size
    guidance_size: Size = None
    fit: str
    compute_dtype: str
    versions: dict[str, str]
    shards: tuple[tuple[tuple[str, str], ...], ...]

    @classmethod
    def load(cls, root: Path) -> "StoreCard":
        """Read the card of a store."""
        path = root / CARD
        if not path.is_file():
            raise FileNotFoundError(
                f"no store at {root}: it has no {CARD}; name the --out of upfeat extract"
            )
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError, ValidationError) as error:
            raise ValueError(
                f"{path} is not the card of a store ({FORMAT}): {error}; extract the features anew "
                "into another folder"
            ) from error

    def differences(self, other: "StoreCard") -> list[str]:
        """Return how another store differs from this one, beside versions and images."""
        old, new = (card.model_dump(exclude=_RECORDS) for card in (self, other))
        return _differences(old, new)


_RECORDS = {"versions", "shards"}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        one, two = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += _differences(one, two, f"{path}{name}.")
        elif one != two:
            found.append(f"{path}{name} {one!r}, now {two!r}")
    return found


@dataclass(frozen=True)
class StorePlan:
    """A store that is to be written, or finished: its images and about the bytes of each shard."""

    root: Path
    card: StoreCard
    shards: tuple[tuple[Job, ...], ...]
    expected: tuple[int, ...]

    @property
    def kind(self) -> type[ShardFile]:
        """The class of the shards."""
        return shard_format(self.card.store)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return DTYPES[self.card.dtype]

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All images in order."""
        return tuple(job for shard in self.shards for job in shard)

    def place(self, number: int) -> Path:
        """Return where a shard belongs."""
        return shard_place(self.root, number, self.kind)

    def finished(self, number: int) -> ShardFile | None:
        """Return a shard that is there and holds its images as they are now; None for any other."""
        shard, place = self.shards[number], self.place(number)
        if not place.exists():
            return None
        file = self.kind(place)
        try:
            known = {each.key: each.sha256 for each in file.failures}
            known |= {each.key: each.sha256 for each in file.images}
            current = known == {key_of(job): _fingerprint(job) for job in shard}
        except Exception:  # noqa: BLE001  (a damaged file, for which readers raise anything)
            return None
        return file if current else None

    def bytes_left(self) -> int:
        """Return about how many bytes are to be written, of shards that are not there."""
        sizes = enumerate(self.expected)
        return sum(size for number, size in sizes if not self.place(number).exists())

    def begin(self) -> None:
        """Write the card, unless it is there; refuse a folder of something else."""
        if _card_of(self.root) is not None:
            return
        own = OwnFiles(self.root)
        own.claim_all(MAKER)
        # Of the standard library: names of files need not be UTF-8, which pydantic's JSON demands.
        own.write(CARD, f"{json.dumps(self.card.model_dump())}\n".encode(), MAKER)


def shard_place(root: Path, number: int, kind: type[ShardFile]) -> Path:
    """Return where a shard of a store is."""
    return root / f"shard-{number:05d}{kind.suffix}"


def plan_store(
    jobs: Sequence[Job],
    pipe: Pipeline,
    out: Path,
    *,
    store: str = "safetensors",
    features: str = "low",
    dtype: torch.dtype = torch.float16,
    shards: int | None = None,
    pictures: bool = False,
    upsampler: str | None = None,
    upsampler_file: Path | None = None,
    backbone_file: Path | None = None,
) -> StorePlan:
    """Decide which images go into which shard, and compare with what is in the folder.

    Args:
        jobs: images and the names that become their keys.
        pipe: backbone, upsampler, sizes; ``pipe.batch_size`` images are encoded together.
        out: folder of the store: absent, empty, or a store of the same settings and images.
        store: format of the shards: ``"safetensors"``, ``"zarr"``, ``"parquet"`` or ``"lance"``.
        features: ``"low"`` for the backbone's map, upsampled when it is read; ``"pca64"`` for its
            first 64 principal components; ``"high"`` for the upsampled map.
        dtype: of the stored numbers, ``torch.float16`` or ``torch.float32``.
        shards: how many; None for shards of at most 64 images and about 256 MB. A shard is held in
            memory until it is written.
        pictures: keep the images' files, too, so that the store can be upsampled without them.
        upsampler: the spec that loads the upsampler again (``upfeat.load_upsampler``).
        upsampler_file: its weights, where they were given as a file.
        backbone_file: the backbone's, likewise.

    Raises:
        ForeignFileError: the folder holds something else.
        MissingPackageError: the format's package is not installed.
        ValueError: the folder holds a store of other settings or images, or an argument is none of
            those above.

    Example:
        >>> import pathlib, tempfile, torch, upfeat
        >>> from PIL import Image
        >>> from upfeat.extraction import Job, plan_store, write_store
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"))
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     Image.new("RGB", (48, 32)).save(folder / "a.png")
        ...     jobs = [Job(folder / "a.png", pathlib.Path("a"))]
        ...     plan = plan_store(jobs, pipe, folder / "store", upsampler="bilinear")
        ...     done = write_store(plan, pipe).count("done")
        ...     high = upfeat.open_store(folder / "store")["a"].upsample()
        >>> plan.bytes_left(), done, tuple(high.shape)
        (144, 1, (3, 32, 48))
    """
    _check_request(pipe, store, features, dtype)
    if not jobs:
        raise ValueError("there are no images to store the features of")
    present = _card_of(out)
    sizes = [_job_bytes(job, pipe, features, dtype, pictures) for job in jobs]
    if shards is None:
        shards = len(present.shards) if present is not None else _default_shards(sizes)
    if not 1 <= shards <= len(jobs):
        raise ValueError(
            f"shards must be from 1 to {len(jobs)}, the number of images, got {shards}"
        )
    bounds = [len(jobs) * number // shards for number in range(shards + 1)]
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    named = [(key_of(job), str(job.source.absolute())) for job in jobs]
    settings: dict[str, Any] = {
        "store": store,
        "features": features,
        "dtype": str(dtype).removeprefix("torch."),
        "pictures": pictures,
        "backbone": _backbone_card(pipe.backbone, backbone_file),
        "upsampler": _upsampler_card(pipe.upsampler, upsampler, upsampler_file),
        "shards": [named[part] for part in parts],
    }
    card = StoreCard(**settings, **_sizes_and_versions(pipe))
    if present is not None:
        _check_same(out, present, card)
    return StorePlan(
        out,
        card,
        tuple(tuple(jobs[part]) for part in parts),
        tuple(sum(sizes[part]) for part in parts),
    )


def _check_request(pipe: Pipeline, store: str, features: str, dtype: torch.dtype) -> None:
    shard_format(store)
    if features not in FEATURES:
        raise UnknownNameError("features", features, FEATURES)
    if dtype not in DTYPES.values():
        raise ValueError(f"features are stored as float16 or float32, got {dtype}")
    if features == "pca64" and pipe.backbone.dim < COMPONENTS:
        raise ValueError(
            f"pca64 keeps {COMPONENTS} channels, and {pipe.backbone.name} has "
            f"{pipe.backbone.dim}; store the features low"
        )


def _card_of(root: Path) -> StoreCard | None:
    """Return the card of the store in a folder, None where the folder is free for one."""
    if (root / CARD).is_file():
        return StoreCard.load(root)
    others = [path.name for path in root.iterdir() if path.name[0] != "."] if root.exists() else []
    if others:
        raise ForeignFileError(
            f"{root} holds {sorted(others)[0]} and is not a store; choose a new or an empty folder"
        )
    return None


def _check_same(root: Path, present: StoreCard, card: StoreCard) -> None:
    """Refuse to go on with a store of other settings or images."""
    if differing := present.differences(card):
        raise ValueError(
            f"{root} holds a store with other settings ({'; '.join(differing)}); choose another "
            "folder, or use the settings that it was started with"
        )
    before, now = (sum(map(len, each.shards)) for each in (present, card))
    if before != now:
        raise ValueError(
            f"{root} holds a store of {before} images, and {now} are given; choose another folder"
        )
    if present.shards != card.shards:
        raise ValueError(
            f"{root} holds a store of other images, or in {len(present.shards)} shards instead of "
            f"{len(card.shards)}; choose another folder"
        )


def _default_shards(sizes: Sequence[int]) -> int:
    """Return how many shards there are if nobody says: each is held in memory."""
    by_bytes, by_images = sum(sizes) / TILE_BYTES, len(sizes) / _SHARD_IMAGES
    return min(len(sizes), math.ceil(max(by_bytes, by_images)))


def _job_bytes(job: Job, pipe: Pipeline, features: str, dtype: torch.dtype, pictures: bool) -> int:
    """Return how much an image will take in the store, from its header."""
    try:
        own = image_size(job.source)
        height, width = (
            resolve_size(pipe.output_size, own)
            if features == "high"
            else pipe.backbone.grid_size(pipe.frame(own).padded)
        )
        kept = job.source.stat().st_size if pictures else 0
    except Exception:  # noqa: BLE001  (a broken file takes nothing; the run itself names it)
        return 0
    channels = COMPONENTS if features == "pca64" else pipe.backbone.dim
    return channels * height * width * dtype.itemsize + kept


def _backbone_card(backbone: Backbone, file: Path | None) -> BackboneCard:
    known = BackboneCard.model_fields.keys() - {"weights", "file"}
    facts: dict[str, Any] = {
        name: getattr(backbone, name, None) for name in known
    }  # not every one has a norm
    weights = weights_fingerprint(backbone.state_dict())
    return BackboneCard(weights=weights, file=_absolute(file), **facts)


def _upsampler_card(upsampler: Upsampler, spec: str | None, file: Path | None) -> UpsamplerCard:
    return UpsamplerCard(
        spec=spec,
        name=upsampler.info.name,
        config=json.loads(json.dumps(upsampler.config, default=str)),
        weights=weights_fingerprint(upsampler.state_dict()),
        file=_absolute(file),
    )


def _sizes_and_versions(pipe: Pipeline) -> dict[str, Any]:
    from importlib.metadata import version

    names = ("batch_size", "input_size", "output_size", "guidance_size", "fit")
    versions = {"upfeat": upfeat.__version__}
    versions |= {name: version(name) for name in ("torch", "timm")}
    return {
        **{name: getattr(pipe, name) for name in names},
        "compute_dtype": str(pipe.dtype).removeprefix("torch."),
        "versions": versions,
    }


def key_of(job: Job) -> str:
    """Return the name of an image in the store: UTF-8, which names of files need not be."""
    return job.name.as_posix().encode("utf-8", "backslashreplace").decode()


def _absolute(file: Path | None) -> str | None:
    return None if file is None else str(file.absolute())


def _fingerprint(job: Job) -> str | None:
    try:
        return sha256_of(job.source)
    except (OSError, ValueError):
        return None
