"""Training batches whose order is a function of the seed alone.

Samples form one endless stream: position ``p`` is the ``p mod N``-th entry of the permutation of
epoch ``p // N``, which depends on (seed, epoch) only; all chance within a sample (crop, flip,
annotator) comes from a generator of (seed, epoch, index). So batches do not depend on the number of
worker processes, and one number, the samples consumed so far, says where to continue. With several
processes each takes its part of the same global batch.

Legend: ``B`` batch, ``H W`` image after the transform, ``M`` masks (filled up with empty ones).
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from upfeat.data.mask_sets import TurnedMasks
from upfeat.data.masks import MaskSource
from upfeat.data.opening import turned
from upfeat.data.records import ImageRecord, Records
from upfeat.data.transforms import Transform
from upfeat.errors import shape_text

logger = logging.getLogger(__name__)

SHOWN_NAMES = 5  # of images that could not be used, in a message


class SampleKey(NamedTuple):
    """Which sample: the image's number in the collection, and the epoch."""

    number: int
    epoch: int


class Skipped(NamedTuple):
    """An image that could not be used, and why."""

    name: str
    reason: str


class Sample(TypedDict):
    """One image (3, H, W) in [0, 1] and where it comes from.

    Where there are sources: its masks, bool (M, H, W), its depth (1, H, W), 0 where missing, and
    its stored features (C, H, W) as ``target``.
    """

    image: Tensor
    masks: NotRequired[Tensor]
    depth: NotRequired[Tensor]
    target: NotRequired[Tensor]
    name: str
    index: int
    skipped: list[Skipped]


class ImageBatch(TypedDict):
    """Samples with a first axis B; ``name`` and ``skipped`` are lists."""

    image: Tensor
    masks: NotRequired[Tensor]
    depth: NotRequired[Tensor]
    target: NotRequired[Tensor]
    name: list[str]
    index: Tensor
    skipped: list[Skipped]


def sample_generator(*numbers: int) -> torch.Generator:
    """Return a generator whose state depends on these numbers alone, on every machine."""
    text = "/".join(str(int(number)) for number in numbers)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(eq=False, repr=False)
class TrainingImages(Dataset[Sample]):
    """Images of a collection, cut by a transform, with their masks and depth maps.

    In the place of an image that is broken (or too small for the crop, or without masks or depth)
    another one is drawn, the same on every run; the sample says which were skipped and why.

    Args:
        records: the images.
        transform: draws the geometry of each sample.
        masks: where masks come from; None for none.
        depth: where depth maps (1, H', W') come from; None for none.
        features: where stored features (C, H', W') come from; None for none.
        seed: of all chance.
        attempts: images tried in one place before it is an error.

    Raises:
        ValueError: there are no images; later, none of ``attempts`` in a row could be used.
    """

    records: Records | Sequence[ImageRecord]
    transform: Transform
    _: KW_ONLY
    masks: MaskSource | None = None
    depth: Callable[[ImageRecord], Tensor] | None = None
    features: Callable[[ImageRecord], Tensor] | None = None
    seed: int = 0
    attempts: int = 16

    def __post_init__(self) -> None:
        if not len(self.records):
            raise ValueError("there are no training images; check the folder or list")
        if self.attempts < 1:
            raise ValueError(f"attempts must be positive, got {self.attempts}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | SampleKey) -> Sample:
        index, epoch = (key, 0) if isinstance(key, int) else key
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        skipped: list[Skipped] = []
        for attempt in range(self.attempts):
            generator = sample_generator(self.seed, epoch, index, attempt)
            number = index
            if attempt:
                number = int(torch.randint(len(self), (), generator=generator))
            record = self.records[number]
            try:
                sample = self._sample(record, number, generator)
            except ValueError as error:
                skipped.append(Skipped(record.name, str(error)))
                continue
            sample["skipped"] = skipped
            return sample
        names = list(dict.fromkeys(name for name, _ in skipped))
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise ValueError(
            f"{self.attempts} images in a row could not be used "
            f"({', '.join(names[:SHOWN_NAMES])}{more}), the last one because: "
            f"{skipped[-1].reason}; check the training images"
        )

    def _sample(self, record: ImageRecord, index: int, generator: torch.Generator) -> Sample:
        image = record.read_image()
        size = (image.shape[1], image.shape[2])
        geometry = self.transform.geometry(size, generator)
        sample = Sample(image=geometry.image(image), name=record.name, index=index, skipped=[])
        if self.masks is not None:
            masks = self.masks(record, image, generator)
            if number := _turn(record, "masks", masks.size, size):
                masks = TurnedMasks(masks, number)
            sample["masks"] = masks.cut(geometry)
        maps = (("depth", self.depth), ("target", self.features))
        for name, source in maps:
            if source is None:
                continue
            stored = source(record)
            if number := _turn(record, name, (stored.shape[1], stored.shape[2]), size):
                stored = turned(stored, number)
            # Nearest: missing depths mix with nothing.
            sample[name] = geometry.labels(stored)  # type: ignore[literal-required]
        return sample


def _turn(record: ImageRecord, what: str, stored: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the EXIF orientation by which maps must be turned to lie on their image; 0 for none.

    Maps of another shape than the image are refused, unless they lie on the photo as the camera
    stored it: sideways. Rounding of one pixel is no difference.
    """

    def fits(height: int, width: int) -> bool:
        return abs(height * size[1] - width * size[0]) <= max(size)

    if fits(*stored):
        return 0
    if fits(stored[1], stored[0]) and (number := record.orientation()) >= 5:
        return number
    raise ValueError(
        f"the {what} of {record.name}: {stored}, the image is {size} (height, width); they cannot "
        "lie on each other"
    )


def collate(samples: Sequence[Sample]) -> ImageBatch:
    """Stack samples; masks are filled up with empty ones to the largest number in the batch.

    Raises:
        ValueError: images of different sizes.
    """
    shapes = {shape_text(sample["image"]) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(
            f"images of one batch must have one size, got {', '.join(sorted(shapes))}; give the "
            "transform a crop, or use a batch of one"
        )
    batch = ImageBatch(
        image=torch.stack([sample["image"] for sample in samples]),
        name=[sample["name"] for sample in samples],
        index=torch.tensor([sample["index"] for sample in samples]),
        skipped=[skipped for sample in samples for skipped in sample["skipped"]],
    )
    if all("masks" in sample for sample in samples):
        masks = [sample["masks"] for sample in samples]
        most = max(len(one) for one in masks)
        batch["masks"] = batch["image"].new_zeros(
            len(masks), most, *batch["image"].shape[-2:], dtype=torch.bool
        )
        for filled, one in zip(batch["masks"], masks, strict=True):
            filled[: len(one)] = one
    for name in ("depth", "target"):
        if all(name in sample for sample in samples):
            batch[name] = torch.stack([sample[name] for sample in samples])
    return batch


@dataclass(eq=False, repr=False)
class PositionSampler(Sampler[list[SampleKey]]):
    """Keys of the batches of one process, from a position of the stream on.

    Args:
        length: number N of images.
        seed, shuffle: of the order; without shuffling every epoch is the collection's order.
        start, stop: global positions; ``stop=None`` never ends.
        global_batch: samples of a batch over all processes.
        rank, world_size: the process takes the ``rank``-th of ``world_size`` equal parts.
    """

    length: int
    _: KW_ONLY
    seed: int
    shuffle: bool
    start: int
    stop: int | None
    global_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def key(self, position: int) -> SampleKey:
        """Return the sample at a position of the stream."""
        epoch, place = divmod(position, self.length)
        if not self.shuffle:
            return SampleKey(place, epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(self.length, generator=sample_generator(self.seed, epoch))
            self._epoch = epoch
        return SampleKey(int(self._order[place]), epoch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first, local = self.start, self.global_batch // self.world_size
        while self.stop is None or first < self.stop:
            begin = first + self.rank * local
            end = begin + local
            if self.stop is not None:
                end = min(end, self.stop)
            if begin < end:
                yield [self.key(position) for position in range(begin, end)]
            first += self.global_batch


@dataclass(eq=False, repr=False)
class TrainingLoader:
    """Batches of the stream, resumable to the sample.

    Iterating continues at the position; after the loop is left it may be iterated again. A batch
    counts as consumed when it has been handed out. Broken images are logged once each and kept in
    :attr:`skipped`.

    Args:
        dataset: the images.
        batch_size: samples of a batch in this process.
        workers: processes that read ahead; 0 reads in this one. The batches are the same.
        shuffle: a new order each epoch; else the collection's order.
        samples: global position at which the stream ends; None for an endless one.
        rank, world_size: this process among those that train together; the global batch is
            ``batch_size * world_size``, split in the order of the ranks.
        pin_memory: for faster copies to a GPU.
        prefetch: batches that each worker reads ahead.

    Attributes:
        position: samples consumed, over all processes.
        skipped: reason by the name of the image, of this process.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from upfeat.data import CropTransform, TrainingImages, TrainingLoader, image_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in "abc":
        ...         Image.new("RGB", (80, 60)).save(pathlib.Path(folder, f"{name}.png"))
        ...     images = TrainingImages(image_folder(folder), CropTransform(32, 32))
        ...     loader = TrainingLoader(images, batch_size=2, samples=4)
        ...     [tuple(batch["image"].shape) for batch in loader], loader.state_dict()["position"]
        ([(2, 3, 32, 32), (2, 3, 32, 32)], 4)
    """

    dataset: TrainingImages
    batch_size: int
    _: KW_ONLY
    workers: int = 0
    shuffle: bool = True
    samples: int | None = None
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False
    prefetch: int = 2

    position: int = field(default=0, init=False)
    skipped: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.prefetch < 1:
            raise ValueError(
                "batch_size and prefetch must be positive and workers not negative, got "
                f"{self.batch_size}, {self.prefetch} and {self.workers}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be in [0, world_size), got {self.rank} of {self.world_size}"
            )

    @property
    def epoch(self) -> float:
        """How many times the collection has been gone through, with a fraction."""
        return self.position / len(self.dataset)

    def __len__(self) -> int:
        """Return the batches from the beginning of a stream that ends."""
        if self.samples is None:
            raise TypeError("an endless TrainingLoader has no length; pass samples=")
        return -(-self.samples // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[ImageBatch]:
        global_batch = self.batch_size * self.world_size
        sampler = PositionSampler(
            len(self.dataset),
            seed=self.dataset.seed,
            shuffle=self.shuffle,
            start=self.position,
            stop=self.samples,
            global_batch=global_batch,
            rank=self.rank,
            world_size=self.world_size,
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch if self.workers else None,
            # The loader draws a number for its workers; the global generator stays untouched.
            generator=torch.Generator(),
        )
        for batch in loader:
            self.position += global_batch
            if self.samples is not None:
                self.position = min(self.position, self.samples)
            self._report(batch["skipped"])
            yield batch

    def _report(self, skipped: Sequence[Skipped]) -> None:
        for name, reason in skipped:
            if name not in self.skipped:
                logger.warning("skipped %s: %s", name, reason)
            self.skipped[name] = reason

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, and what decides its order; plain JSON."""
        return {
            "position": self.position,
            "seed": self.dataset.seed,
            "length": len(self.dataset),
            "shuffle": self.shuffle,
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was taken; batch size and number of processes may differ.

        Raises:
            ValueError: the state is of another seed, order or number of images, so that the
                stream would be another one.
        """
        current = self.state_dict()
        for name in ("seed", "length", "shuffle"):
            if state[name] != current[name]:
                raise ValueError(
                    f"the saved position is of a stream with {name} {state[name]}, this one has "
                    f"{current[name]}: the order would differ; restore it or start anew"
                )
        self.position = int(state["position"])
        self.skipped = dict(state["skipped"])
