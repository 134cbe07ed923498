"""Reading a store: features by image, upsampled when they are read.

Legend: ``C`` channels (64 of ``pca64``), ``h w`` low-resolution grid, ``H W`` an image's own size,
``H' W'`` output size.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.backbones import create_backbone
from upfeat.backbones.base import Backbone
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.images import decode_image
from upfeat.data.sizes import SizeRequest
from upfeat.errors import CheckpointError, UnknownNameError, UnsupportedError
from upfeat.extraction.basis import ChannelBasis
from upfeat.extraction.plan import BASIS, DTYPES, BackboneCard, StoreCard, shard_place
from upfeat.extraction.shards import FailedImage, Region, ShardFile, StoredImage, shard_format
from upfeat.loading import load_upsampler, runs_backbone
from upfeat.pipeline import Pipeline
from upfeat.upsamplers.base import Upsampler

PathLike = str | os.PathLike[str]


def open_store(
    path: PathLike,
    *,
    upsampler: str | Upsampler | None = None,
    images: PathLike | None = None,
    device: torch.device | str | None = None,
) -> "Store":
    """Open the features that ``upfeat extract`` wrote.

    Args:
        path: the folder.
        upsampler: another upsampler than the store names, or a spec for it; features at low
            resolution can be upsampled by any method that fits the backbone.
        images: the folder of the images, where it is no longer the one that they were read from.
        device: where to upsample; None for the CPU.

    Raises:
        FileNotFoundError: there is no store.
        MissingPackageError: the package of its format is not installed.
        ValueError: it cannot be read, or is not finished.

    Example:
        >>> import upfeat
        >>> try:
        ...     upfeat.open_store("no/such/folder")
        ... except FileNotFoundError as error:
        ...     print(error)
        no store at no/such/folder: it has no store.json; name the --out of upfeat extract
    """
    return Store(path, upsampler=upsampler, images=images, device=device)


class Store(Mapping[str, "StoredFeatures"]):
    """The features of many images by key, read from the disk when they are asked for.

    ``store[key]``, ``store[3]`` and ``store[10:20]`` give :class:`StoredFeatures` (a list of them
    for a slice); iteration gives the keys. A store may be handed to other processes, such as the
    workers of a ``DataLoader``. Arguments and errors are those of :func:`open_store`.

    Attributes:
        path: its folder.
        card: its settings: backbone, upsampler, normalisation, sizes, versions.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        upsampler: str | Upsampler | None = None,
        images: PathLike | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.card = StoreCard.load(self.path)
        self._given, self._device = upsampler, device or "cpu"
        self._images = None if images is None else Path(images).expanduser()
        kind, count = shard_format(self.card.store), len(self.card.shards)
        self._files = [kind(shard_place(self.path, number, kind)) for number in range(count)]
        missing = sum(not file.path.exists() for file in self._files)
        if missing:
            raise ValueError(
                f"{self.path} is not finished: {missing} of {count} shards are missing; run the "
                "same upfeat extract again to finish it"
            )

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Shard and position of every key."""
        return {
            image.key: (number, index)
            for number, file in enumerate(self._files)
            for index, image in enumerate(file.images)
        }

    @cached_property
    def _keys(self) -> list[str]:
        return list(self._places)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return DTYPES[self.card.dtype]

    @property
    def failures(self) -> dict[str, FailedImage]:
        """The images without features, by key."""
        return {each.key: each for file in self._files for each in file.failures}

    @cached_property
    def basis(self) -> ChannelBasis | None:
        """Of a store of ``pca64``: from 64 channels back to the backbone's; None for others."""
        return ChannelBasis.load(self.path / BASIS) if self.card.features == "pca64" else None

    def __len__(self) -> int:
        """Return the number of images with features."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Return the keys in the order of the images."""
        return iter(self._places)

    @overload
    def __getitem__(self, key: str | int) -> "StoredFeatures": ...

    @overload
    def __getitem__(self, key: slice) -> "list[StoredFeatures]": ...

    def __getitem__(self, key: str | int | slice) -> "StoredFeatures | list[StoredFeatures]":
        """Return the features of a key, of a position, or of a slice of positions."""
        if isinstance(key, slice):
            return [self[name] for name in self._keys[key]]
        name = key if isinstance(key, str) else self._keys[key]
        if name not in self._places:
            raise KeyError(str(UnknownNameError("image", name, self._keys)))
        number, index = self._places[name]
        return StoredFeatures(self, self._files[number], index)

    def __repr__(self) -> str:
        """Show what it holds."""
        card = self.card
        return (
            f"Store({str(self.path)!r}: {len(self)} images, {card.features} features of "
            f"{card.backbone.name}, {card.dtype}, {len(card.shards)} {card.store} shards)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and networks out."""
        state = {name: value for name, value in vars(self).items() if name != "pipeline"}
        return state | {"_files": [type(file)(file.path) for file in self._files]}

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change with any key, image file or stored number.

        Equal features have one fingerprint in every format and in any number of shards.
        """
        digest = hashlib.sha256(f"{self.card.features} {self.card.dtype}".encode())
        for features in self.values():
            image = features.record
            digest.update(f"{image.key} {image.sha256} {image.shape}".encode())
            digest.update(np.ascontiguousarray(features.padded()).tobytes())
        return digest.hexdigest()

    @cached_property
    def pipeline(self) -> Pipeline:
        """The upsampler, with the sizes of the store.

        The backbone beside it is only its description, unless the method runs it.

        Raises:
            CheckpointError: the weights are not those that the store was made with.
            WeightsNotFoundError: the weights are not found.
            ValueError: the store names no upsampler, and none is given.
        """
        card, upsampler = self.card.upsampler, self._given
        backbone: Backbone = _DescribedBackbone(self.card.backbone)
        named = upsampler is None
        spec = card.spec if upsampler is None else upsampler
        if spec is None:
            raise ValueError(
                f"{self.path} does not record how to load its upsampler {card.name}; pass "
                "open_store(path, upsampler=...)"
            )
        if isinstance(spec, str) and runs_backbone(spec):
            backbone = _real_backbone(self.card.backbone)
        loaded = (
            load_upsampler(spec, backbone, weights=card.file if named else None)
            if isinstance(spec, str)
            else spec
        )
        if loaded.info.views and isinstance(backbone, _DescribedBackbone):
            backbone = _real_backbone(self.card.backbone)
        pipe = Pipeline(
            backbone,
            loaded,
            input_size=self.card.input_size,
            output_size=self.card.output_size,
            guidance_size=self.card.guidance_size,
            fit=self.card.fit,  # type: ignore[arg-type]
            dtype=getattr(torch, self.card.compute_dtype),
            device=self._device,
        )
        if named and weights_fingerprint(pipe.upsampler.state_dict()) != card.weights:
            raise CheckpointError(
                f"{spec} has other weights than {self.path} was made with; pass the right ones as "
                "open_store(path, upsampler=...)"
            )
        return pipe


class StoredFeatures:
    """The features of one image in a store.

    ``features[...]`` reads a part of the map and ``numpy.asarray(features)`` all of it.

    Attributes:
        store: where it is.
        record: key, file and fingerprint of the image, sizes.
    """

    def __init__(self, store: Store, file: ShardFile, index: int) -> None:
        self.store, self._file, self._index = store, file, index
        self.record: StoredImage = file.images[index]

    @property
    def key(self) -> str:
        """Its name in the store."""
        return self.record.key

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the map, without cells that hold only padding."""
        return self.record.shape[0], *self.record.visible

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return self.store.dtype

    def __repr__(self) -> str:
        """Show key, shape and dtype."""
        return f"StoredFeatures({self.key!r}, {self.shape}, {self.store.card.dtype})"

    def tensor(self) -> Tensor:
        """Return the map (C, h, w) as it is stored."""
        return self[:]

    def numpy(self) -> npt.NDArray[Any]:
        """Return the map (C, h, w) as it is stored."""
        return np.asarray(self.tensor())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the map for numpy."""
        return np.asarray(self.numpy(), dtype)

    def __getitem__(self, index: Any) -> Tensor:
        """Return a part of the map; only what slices of step 1 leave is read from the disk."""
        given = index if isinstance(index, tuple) else (index,)
        plain = [each for each in given if isinstance(each, slice) and each.step in (None, 1)]
        if len(plain) < len(given) or len(given) > 3:
            return self.tensor()[index]
        whole = (*given, *[slice(None)] * (3 - len(given)))
        ends = [each.indices(side)[:2] for each, side in zip(whole, self.shape, strict=True)]
        channels, rows, columns = (slice(start, max(start, stop)) for start, stop in ends)
        return torch.from_numpy(self._read((channels, rows, columns)))

    def padded(self) -> npt.NDArray[Any]:
        """Return the map of the padded image, which upsamplers take."""
        channels, rows, columns = (slice(0, side) for side in self.record.shape)
        return self._read((channels, rows, columns))

    def _read(self, region: Region) -> npt.NDArray[Any]:
        array = self._file.read(self._index, region)
        return np.require(array, requirements=["C", "W"])  # writable, as torch wants it

    def image(self) -> Tensor:
        """Return the image (3, H, W) in [0, 1]: from the store if it keeps pictures, or the file.

        Raises:
            FileNotFoundError: the file is not there.
            ValueError: the file has changed since its features were stored.
        """
        if self.store.card.pictures:
            return decode_image(self._file.picture(self._index), self.key)
        path = Path(self.record.source)
        if self.store._images is not None:
            path = self.store._images / self._name_below()
        if not path.is_file():
            raise FileNotFoundError(
                f"the image of {self.key!r} is no longer at {path}; pass open_store(path, "
                "images=FOLDER), or extract with --keep-images"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.record.sha256:
            raise ValueError(
                f"{path} has changed since its features were stored; extract them again"
            )
        return decode_image(content, str(path))

    def _name_below(self) -> str:
        """Return the image's path below its folder: the key, which may lack the suffix."""
        suffix = Path(self.record.source).suffix
        return self.key if self.key.endswith(suffix) else self.key + suffix

    def upsample(self, size: SizeRequest = None) -> Tensor:
        """Return the features upsampled, with the image as guidance.

        Args:
            size: (H', W'), a shorter side or a factor; None for the ``--size`` of the store, else
                the image's own.

        Returns:
            (C, H', W'), or (64, H', W') of ``pca64``; ``store.basis.restore`` gives C again.

        Raises:
            UnsupportedError: the store holds features that are upsampled already.
            FileNotFoundError, ValueError: as of :meth:`image` and ``Store.pipeline``.
        """
        if self.store.card.features == "high":
            raise UnsupportedError(
                f"{self.store.path} holds upsampled features of {self.shape[1:]}; read them with "
                "tensor(), or extract --features low to upsample when reading"
            )
        kept, basis = torch.from_numpy(self.padded()), self.store.basis
        pipe = self.store.pipeline
        if basis is None:
            return pipe.upsample(pipe.join(self.image(), kept), size)
        encoded = pipe.join(self.image(), basis.restore(kept))
        return pipe.upsample(encoded, size, head=basis.project)


class _DescribedBackbone(Backbone):
    """What a store knows of its backbone: enough for guidance and sizes, not for features."""

    def __init__(self, card: BackboneCard) -> None:
        super().__init__(
            **card.model_dump(exclude={"weights", "file", "norm"}),
        )
        self.norm = card.norm

    def _extract(self, image: Tensor) -> Tensor:
        raise UnsupportedError(f"a store describes {self.name} and does not hold it")


def _real_backbone(card: BackboneCard) -> Backbone:
    """Load the backbone itself."""
    backbone = create_backbone(card.name, weights=card.file, layer=card.layer)
    if weights_fingerprint(backbone.state_dict()) != card.weights:
        raise CheckpointError(
            f"{card.name} has other weights than the store was made with, and its upsampler needs "
            "the backbone; put the right file where it was"
        )
    return backbone
