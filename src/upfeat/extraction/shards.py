"""The files of a store: some images' maps in one file or folder, with what is known of them inside.

A shard's header is JSON and the same in every format: ``images``, a list of :class:`StoredImage`,
and ``failures``. The maps are (C, h, w), in the order of ``images``:

* ``safetensors``: tensors ``features/KEY``, header in the metadata ``upfeat``;
* ``zarr`` (version 3): arrays ``features/000000``, …, each with the attribute ``key``; header in
  the attribute ``upfeat`` of the root group;
* ``parquet`` and ``lance``: one row an image, columns ``key``, ``channels``, ``rows``, ``columns``
  and ``features``, the numbers of the map in the order of (C, h, w); header in the metadata
  ``upfeat`` of the schema.

Where pictures are kept, their files' contents are ``image/KEY``, ``image/000000`` or the column
``image``. Nothing is compressed: features hardly shrink.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from upfeat.data.sizes import Size
from upfeat.errors import UnknownNameError, import_optional
from upfeat.ops.runtime import TILE_BYTES

__all__ = ["SHARD_FORMATS", "FailedImage", "ShardContent", "ShardFile", "StoredImage"]

Array = npt.NDArray[Any]
Region = tuple[slice, slice, slice]
_NAME = "upfeat"  # of the header, wherever a format keeps such things


@dataclass(frozen=True)
class StoredImage:
    """What a store knows of an image: its key, and its file as it was read."""

    key: str
    source: str
    sha256: str
    size: Size  # (H, W)
    shape: tuple[int, int, int]  # (C, h, w) of the stored map, padding included
    visible: Size  # rows and columns of the map that hold a part of the image


@dataclass(frozen=True)
class FailedImage:
    """An image that gave no features, and why; ``sha256`` is None where it could not be read."""

    key: str
    source: str
    sha256: str | None
    error: str


@dataclass
class ShardContent:
    """What is written as one shard."""

    images: list[StoredImage] = field(default_factory=list)
    maps: list[Array] = field(default_factory=list)  # (C, h, w) each, float16 or float32
    pictures: list[bytes] = field(default_factory=list)  # files' contents, where they are kept
    failures: list[FailedImage] = field(default_factory=list)

    @property
    def header(self) -> str:
        """What is known of the images, as JSON."""
        images, failures = map(asdict, self.images), map(asdict, self.failures)
        return json.dumps({"images": list(images), "failures": list(failures)})


class ShardFile(ABC):
    """A shard on the disk, opened when it is first read.

    Attributes:
        suffix: of its name.
        package: what reads and writes it beside numpy and safetensors; None for nothing.
    """

    suffix: ClassVar[str]
    package: ClassVar[str | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def check_package(cls) -> None:
        """Raise ``MissingPackageError`` where the format's package is not installed."""
        if cls.package is None:
            return
        name = {"lance": "pylance"}.get(cls.package, cls.package)
        import_optional(cls.package, name, "store", f"{cls.suffix[1:]} stores")

    @classmethod
    @abstractmethod
    def write(cls, path: Path, content: ShardContent) -> None:
        """Write a new file or folder."""

    @abstractmethod
    def _header(self) -> str:
        """Return the header."""

    @abstractmethod
    def read(self, index: int, region: Region) -> Array:
        """Return a region (channels, rows, columns) of the map of the shard's image ``index``."""

    @abstractmethod
    def picture(self, index: int) -> bytes:
        """Return the content of an image's file, if the store keeps it."""

    @cached_property
    def _known(self) -> dict[str, list[dict[str, Any]]]:
        header: dict[str, list[dict[str, Any]]] = json.loads(self._header())
        return header

    @cached_property
    def images(self) -> tuple[StoredImage, ...]:
        """What is known of the images."""
        found = []
        for each in self._known["images"]:
            sizes = {name: tuple(each[name]) for name in ("size", "shape", "visible")}
            found.append(StoredImage(**(each | sizes)))
        return tuple(found)

    @cached_property
    def failures(self) -> tuple[FailedImage, ...]:
        """The images without features."""
        return tuple(FailedImage(**each) for each in self._known["failures"])


class SafetensorsShard(ShardFile):
    """One ``.safetensors`` file."""

    suffix = ".safetensors"

    @classmethod
    def write(cls, path: Path, content: ShardContent) -> None:
        """See :class:`ShardFile`."""
        from safetensors.numpy import save_file

        tensors = {}
        for index, image in enumerate(content.images):
            tensors[f"features/{image.key}"] = content.maps[index]
            if content.pictures:
                tensors[f"image/{image.key}"] = np.frombuffer(content.pictures[index], np.uint8)
        save_file(tensors, path, {_NAME: content.header})

    @cached_property
    def _file(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, "np")

    def _header(self) -> str:
        return str(self._file.metadata()[_NAME])

    def read(self, index: int, region: Region) -> Array:
        """See :class:`ShardFile`."""
        array: Array = self._file.get_slice(f"features/{self.images[index].key}")[region]
        return array

    def picture(self, index: int) -> bytes:
        """See :class:`ShardFile`."""
        return bytes(self._file.get_tensor(f"image/{self.images[index].key}"))


class ZarrShard(ShardFile):
    """One ``.zarr`` group; arrays are numbered, since keys may hold what zarr refuses."""

    suffix = ".zarr"
    package = "zarr"

    @classmethod
    def write(cls, path: Path, content: ShardContent) -> None:
        """See :class:`ShardFile`."""
        import zarr

        root = zarr.open_group(path, mode="w-", zarr_format=3)
        root.attrs[_NAME] = content.header
        for index, image in enumerate(content.images):
            stored = {"features": content.maps[index]}
            if content.pictures:
                stored["image"] = np.frombuffer(content.pictures[index], np.uint8)
            for kind, data in stored.items():
                root.create_array(
                    f"{kind}/{index:06d}",
                    data=data,
                    chunks=_chunks(data),
                    compressors=None,
                    attributes={"key": image.key},
                )

    @cached_property
    def _root(self) -> Any:
        import zarr

        return zarr.open_group(self.path, mode="r")

    def _header(self) -> str:
        return str(self._root.attrs[_NAME])

    def read(self, index: int, region: Region) -> Array:
        """See :class:`ShardFile`."""
        array: Array = self._root[f"features/{index:06d}"][region]
        return array

    def picture(self, index: int) -> bytes:
        """See :class:`ShardFile`."""
        return bytes(self._root[f"image/{index:06d}"][:])


class _TableShard(ShardFile):
    """One row an image, as pyarrow has tables."""

    @classmethod
    def _table(cls, content: ShardContent) -> Any:
        import pyarrow as pa

        shapes = np.array([image.shape for image in content.images], np.int32).reshape(-1, 3)
        flat = [each.ravel() for each in content.maps] or [np.empty(0, np.float32)]
        ends = np.cumsum([0, *(each.size for each in content.maps)])
        columns = {
            "key": pa.array([image.key for image in content.images], pa.string()),
            **{name: shapes[:, axis] for axis, name in enumerate(("channels", "rows", "columns"))},
            "features": pa.LargeListArray.from_arrays(pa.array(ends), np.concatenate(flat)),
        }
        if content.pictures:
            columns["image"] = pa.array(content.pictures, pa.large_binary())
        return pa.table(columns).replace_schema_metadata({_NAME: content.header})

    @abstractmethod
    def _cell(self, index: int, column: str) -> Any:
        """Return one cell as a pyarrow array of length 1."""

    def read(self, index: int, region: Region) -> Array:
        """See :class:`ShardFile`."""
        cell = self._cell(index, "features")
        flat = cell.flatten().to_numpy(zero_copy_only=False)
        array: Array = flat.reshape(self.images[index].shape)[region]
        return array

    def picture(self, index: int) -> bytes:
        """See :class:`ShardFile`."""
        return bytes(self._cell(index, "image")[0].as_py())


class ParquetShard(_TableShard):
    """One ``.parquet`` file with a row group for each image, so that one is read alone."""

    suffix = ".parquet"
    package = "pyarrow"

    @classmethod
    def write(cls, path: Path, content: ShardContent) -> None:
        """See :class:`ShardFile`."""
        from pyarrow import parquet

        parquet.write_table(
            cls._table(content),
            path,
            row_group_size=1,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
        )

    @cached_property
    def _file(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self.path)

    def _header(self) -> str:
        return bytes(self._file.schema_arrow.metadata[_NAME.encode()]).decode()

    def _cell(self, index: int, column: str) -> Any:
        return self._file.read_row_group(index, columns=[column]).column(0).combine_chunks()


class LanceShard(_TableShard):
    """One ``.lance`` dataset; its inner file names are drawn at random by Lance itself."""

    suffix = ".lance"
    package = "lance"

    @classmethod
    def write(cls, path: Path, content: ShardContent) -> None:
        """See :class:`ShardFile`."""
        import lance

        lance.write_dataset(cls._table(content), str(path))

    @cached_property
    def _dataset(self) -> Any:
        import lance

        return lance.dataset(str(self.path))

    def _header(self) -> str:
        return bytes(self._dataset.schema.metadata[_NAME.encode()]).decode()

    def _cell(self, index: int, column: str) -> Any:
        return self._dataset.take([index], columns=[column]).column(0).combine_chunks()


SHARD_FORMATS: dict[str, type[ShardFile]] = {
    "lance": LanceShard,
    "parquet": ParquetShard,
    "safetensors": SafetensorsShard,
    "zarr": ZarrShard,
}


def shard_format(name: str) -> type[ShardFile]:
    """Return the class of a format whose package is installed."""
    if name not in SHARD_FORMATS:
        raise UnknownNameError("format of a store", name, SHARD_FORMATS)
    SHARD_FORMATS[name].check_package()
    return SHARD_FORMATS[name]


def _chunks(data: Array) -> tuple[int, ...]:
    """Return the shape of zarr's chunks: all channels and columns of as many rows as fit."""
    most = TILE_BYTES // 32  # rows of a large map are read without the others
    if data.ndim == 1 or data.nbytes <= most:
        return tuple(max(1, side) for side in data.shape)
    channels, rows, columns = data.shape
    return channels, max(1, rows * most // data.nbytes), columns
