"""The contract of every upsampler.

Legend: ``B`` batch, ``C`` feature channels, ``K`` value channels, ``h w`` low-resolution grid,
``H W`` guidance image, ``H' W'`` output grid. Sizes are ``(height, width)``.

A method subclasses :class:`Upsampler`, sets ``info`` and writes two plain, differentiable
functions: ``encode`` computes once per image what all output rows need, ``decode`` any strip of
output rows.
``forward`` and ``tiles`` follow from them here, ``query`` from ``decode_at`` where a method has it.
A method without row structure subclasses :class:`WholeMapUpsampler` and writes ``upsample``.
What a method can do is declared once, in ``info.abilities``, and read from there.
"""

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from upfeat.errors import (
    CheckpointError,
    UnsupportedError,
    check_bytes,
    check_call,
    check_coords,
    check_normalization,
    shape_text,
    warn_user,
)
from upfeat.layers.module_weights import first_weight, named_weights
from upfeat.layers.raw_images import warn_of_raw_image
from upfeat.ops import channel_norm, stream
from upfeat.ops.images import normalize
from upfeat.ops.runtime import (
    MAP_BYTES,
    TILE_BYTES,
    Output,
    assemble,
    check_fits,
    is_transformed,
    output_dtype,
    row_strips,
    tracing,
    wants_reference,
)

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.weights import TrainedFor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Abilities",
    "Tile",
    "Upsampler",
    "UpsamplerInfo",
    "WholeMapUpsampler",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Tile = tuple[slice, Tensor]


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a method can do, as data: the one record that callers, tables and pages read.

    Attributes:
        linear: the output is a mean of the values with one set of weights for all channels, which
            sum to 1, so that a linear head may go first: ``head(up(F)) == up(values=head(F))``.
        mixes_values: the output mixes what is given as ``values=``, of any number of channels. A
            method without it makes new features of its own and refuses ``values=``.
        any_size: any output size and ratio; otherwise ``info.factor`` or the next whole ratio, and
            a bilinear resize.
        universal: one set of weights, or none, serves every backbone.
        per_image: optimises at test time, for each image.
        tiles: :meth:`Upsampler.tiles` yields the output in bounded memory.
        query: :meth:`Upsampler.query` answers at single positions.
        gradients: the output carries gradients; a method that optimises for each image and
            regresses the result has none to give.
        compile: ``torch.compile(fullgraph=True)`` takes it.
        export: ``torch.export`` takes it.

    Raises:
        ValueError: ``linear`` without ``mixes_values``.

    Example:
        A head of 21 classes goes before the upsampler where that changes nothing:

        >>> import torch, upfeat
        >>> up, head = upfeat.create_upsampler("bilinear"), torch.nn.Conv2d(384, 21, 1)
        >>> image, features = torch.rand(1, 3, 64, 64), torch.rand(1, 384, 4, 4)
        >>> if up.info.abilities.linear:
        ...     logits = up(image, features, values=head(features))
        ... else:
        ...     logits = head(up(image, features))
        >>> logits.shape
        torch.Size([1, 21, 64, 64])
    """

    linear: bool = False
    mixes_values: bool = True
    any_size: bool = True
    universal: bool = False
    per_image: bool = False
    tiles: bool = False
    query: bool = False
    gradients: bool = True
    compile: bool = True
    export: bool = True

    def __post_init__(self) -> None:
        if self.linear and not self.mixes_values:
            raise ValueError("a method that is linear in its values mixes them; got linear alone")


@dataclasses.dataclass(frozen=True)
class UpsamplerInfo:
    """What a method is.

    Attributes:
        name: registry name.
        summary: one line.
        claim: what its authors say for it, in our words.
        as_baseline: how a paper ran the method as a baseline, by the paper's name ("JAFAR",
            "LoftUp"), read from the paper and its code; a paper without an entry did not run it.
        paper, year, arxiv: where it was published; arxiv is the number or None.
        code: address of the original code, or None.
        code_license, weights_license: as their authors state them.
        task_agnostic: trained (or defined) without a downstream task.
        abilities: what the method can do.
        image_mean, image_std: normalisation of the guidance image (RGB in [0, 1]); None where
            the guidance is the backbone's own input.
        factor: the fixed factor of a method that has one.
        views: the method looks at further views of the image through the backbone, which
            ``with_backbone`` gives it; its guidance must be the backbone's own input.
        feature_norm: each cell's features are brought to mean 0 and standard deviation 1 over the
            channels before the method sees them, because it was trained so. An objective sets it;
            ``save_pretrained`` keeps it.
        short_fit: constructor arguments that shorten a fit of minutes or hours for comparisons and
            benchmarks, which must then say so; empty for all others.

    Example:
        >>> import upfeat
        >>> info = upfeat.create_upsampler("jafar", feature_dim=384).info
        >>> info.arxiv, info.year, info.abilities.query
        ('2506.11136', 2025, True)
    """

    name: str
    summary: str
    claim: str = ""
    as_baseline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paper: str | None = None
    year: int | None = None
    arxiv: str | None = None
    code: str | None = None
    code_license: str | None = None
    weights_license: str | None = None
    task_agnostic: bool = True
    abilities: Abilities = Abilities()
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    factor: int | None = None
    views: bool = False
    feature_norm: bool = False
    short_fit: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a normalisation that divides by zero or is none."""
        check_normalization(self.image_mean, self.image_std)

    def with_abilities(self, **changes: bool) -> Self:
        """Return a copy with other abilities, for an instance whose options change them."""
        return dataclasses.replace(self, abilities=dataclasses.replace(self.abilities, **changes))


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``__init__`` so that the outermost call's arguments, defaults included, are kept."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: "Upsampler", *args: Any, **kwargs: Any) -> None:
        if "config" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            arguments.pop(next(iter(signature.parameters)))
            self.__dict__["config"] = arguments
        init(self, *args, **kwargs)

    return wrapper


class Upsampler(nn.Module):
    """Base class of all feature upsamplers.

    Call it as ``upsampler(image, features, output_size=None, values=None)``; see :meth:`forward`.

    Attributes:
        info: what the method is and, in ``info.abilities``, can do; an instance with published
            weights or other options narrows the class's.
        config: the arguments it was built with, as ``save_pretrained`` stores them.
        trained_for: the backbone that the weights belong to; None where none is known or any will
            do.
        streams: whether the encoder works at full resolution; it then encodes one image at a time
            where no graph is recorded, by row strips (``upfeat.ops.stream``).
        bounded_decode: whether decoding all rows at once keeps little beside the output; a plain
            call then does so, in one strip.
        whole_in_training: whether training mode needs whole maps: batch norm, dropout of channels.
        feature_scale: deviation over the channels of what the method regresses; it counts for those
            that regress channel-normalised features alone.
        official_globals: foreign classes that the method's official pickles may name.
        official_keys: keys under which official files nest the state dict.
        official_parts: keys under which official files hold several state dicts side by side, whose
            tensors keep them as prefixes.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("bilinear")
        >>> up(torch.rand(1, 3, 32, 48), torch.rand(1, 8, 4, 6)).shape
        torch.Size([1, 8, 32, 48])
    """

    info: UpsamplerInfo
    config: dict[str, Any]
    trained_for: "TrainedFor | None" = None
    feature_scale: float = 1.0
    streams: bool = False
    bounded_decode: ClassVar[bool] = False
    whole_in_training: ClassVar[bool] = False
    official_globals: ClassVar[tuple[Any, ...]] = ()
    official_keys: ClassVar[tuple[str, ...]] = ()
    official_parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Record constructor arguments of every subclass."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def __init__(self) -> None:
        self.__dict__.setdefault("config", {})
        super().__init__()
        self._warned_of: set[str] = set()

    # -- calling ---------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Upsample ``features`` to ``output_size`` under the guidance of ``image``.

        Args:
            image: (B, 3, H, W), normalised as ``info.image_mean`` and ``info.image_std`` say
                (None: as for the backbone). :meth:`prepare` does it, ``upfeat.Pipeline`` by
                itself; an image in [0, 1] or [0, 255] where that is wrong is warned of once.
            features: (B, C, h, w).
            output_size: (H', W'); default (H, W).
            values: (B, K, h, w), what to mix with the weights that image and features decide;
                default ``features``. Only where ``info.abilities.mixes_values`` (not LoftUp).

        Returns:
            (B, C or K, H', W') on the device of ``features`` and in their dtype, under autocast in
            autocast's, as of torch's modules.

        Raises:
            ValueError: the inputs do not fit each other or the method.
            UnsupportedError: within a transform of ``torch.func`` or with forward-mode tangents,
                where the method or an operator of torch does not take it.
        """
        if is_transformed():
            return self._in_transform(self._whole, image, features, output_size, values)
        return self._whole(image, features, output_size, values)

    def _whole(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | None,
        values: Tensor | None,
    ) -> Tensor:
        tool = tracing()
        if tool is not None and not getattr(self.info.abilities, tool):
            raise UnsupportedError(
                f"{self.info.name} cannot be traced by torch.{tool}: what it does depends on the "
                "numbers in its inputs; call it directly"
            )
        size = check_call(image, features, output_size, values)
        mixed = features if values is None else values
        advice = "ask for a smaller output_size, or for tiles() where the method has them"
        check_fits((*mixed.shape[:2], *size), features, "the output (B, K, H', W')", advice)
        self._check(image, features, size, values)
        self._warn_of_raw_image(image)
        dtype = output_dtype(features)
        image, features, mixed = self._cast(image, features, values)
        return self._upsample(image, features, size, mixed).to(dtype)

    # -- a method's two functions ----------------------------------------------------------------

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Any:
        """Compute what all output rows need, once per image; the arguments are checked.

        Args:
            image: (B, 3, H, W), in the type of the weights.
            features: (B, C, h, w).
            output_size: (H', W').

        Returns:
            A ``NamedTuple`` of tensors (B, ...) for :meth:`decode`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode")

    def encode_values(self, state: Any, values: Tensor) -> Tensor:
        """Compute what all output rows need of the values; by default the values themselves.

        Args:
            state: of :meth:`encode`.
            values: (B, K, h, w), what is mixed; the features where the caller gave none.

        Returns:
            (B, ...), for :meth:`decode` and :meth:`decode_at`.
        """
        return values

    def decode(self, state: Any, values: Tensor, rows: slice) -> Tensor:
        """Compute a strip of output rows.

        Args:
            state: of :meth:`encode`.
            values: of :meth:`encode_values`, so (B, K, h, w) by default.
            rows: of the output, ``slice(start, stop)``.

        Returns:
            (B, K, R, W').
        """
        raise NotImplementedError(f"{type(self).__name__} must implement decode")

    def decode_at(self, state: Any, values: Tensor, coords: Tensor) -> Tensor:
        """Compute the output at positions (B, N, 2): (B, N, K); where ``abilities.query``."""
        raise NotImplementedError(f"{type(self).__name__} must implement decode_at")

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Return how many numbers one output row of one image takes with its temporaries.

        The default counts the row and one copy. It decides how high a strip is, nothing else.
        """
        return 2 * values.shape[1] * output_size[1]

    # -- how they are run ------------------------------------------------------------------------

    def _graphs(self, image: Tensor, features: Tensor, values: Tensor) -> tuple[bool, bool]:
        """Return whether the encoder and the decoder must run as plain networks: the one rule.

        They must where gradients are recorded through them, while ``torch.compile`` or
        ``torch.export`` traces or operations are counted, and where training needs whole maps.
        Everything else is computed by strips of rows in bounded memory.
        """
        if wants_reference() or (self.training and self.whole_in_training):
            return True, True
        if not torch.is_grad_enabled():
            return False, False
        weights = (weight for _, weight in named_weights(self))
        encoder = any(t.requires_grad for t in (image, features, *weights))
        return encoder, encoder or values.requires_grad

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Compute the whole output; the arguments are checked and of one dtype."""
        encoder, decoder = self._graphs(image, features, values)
        every = slice(0, output_size[0])
        if encoder:
            return self._decode_graph(self.encode(image, features, output_size), values, every)
        if decoder:
            states = self._encode_items(image, features, output_size, MAP_BYTES)
            return torch.cat([self._decode_graph(state, values[i], every) for i, state in states])
        out = Output(values, len(image), output_size[0])
        row_bytes = 0 if self.bounded_decode else values.element_size()
        row_bytes *= self.row_floats(features, values, output_size)
        row_bytes *= 1 if self.streams else len(image)
        with torch.no_grad():
            for item, state in self._encode_items(image, features, output_size, MAP_BYTES):
                mixed = self.encode_values(state, values[item])
                decode = functools.partial(self.decode, state, mixed)
                height = output_size[0]
                block = stream.block_rows(state, height)
                ahead = functools.partial(stream.read_ahead, state, height=height)
                assemble(decode, height, row_bytes, out, item, block=block, ahead=ahead)
        return out.result()

    def _decode_graph(self, state: Any, values: Tensor, rows: slice) -> Tensor:
        """Decode rows whose graph, if any, is theirs alone and leads to the values."""
        return self.decode(state, self.encode_values(state, values), rows)

    def _encode_items(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], max_bytes: int
    ) -> Iterator[tuple[slice, Any]]:
        """Yield the batch's encodings without a graph: of single images where they stream."""
        step = 1 if self.streams else len(image)
        for start in range(0, len(image), step):
            item = slice(start, start + step)
            with torch.no_grad(), stream.bounded(max_bytes):
                state = self.encode(image[item], features[item], output_size)
                stream.prepare(state)
            yield item, state

    def tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | None = None,
        values: Tensor | None = None,
        *,
        max_bytes: int = MAP_BYTES + TILE_BYTES,
        piece_bytes: int = TILE_BYTES,
    ) -> Iterator[Tile]:
        """Yield the output in pieces, so that memory does not grow with its size.

        Args:
            image: (B, 3, H, W), as in :meth:`forward`.
            features: (B, C, h, w).
            output_size: (H', W'); default (H, W).
            values: (B, K, h, w); default ``features``.
            max_bytes: what the call may take. Methods whose encoder streams hold full-resolution
                maps within it and compute anew what does not fit, which takes several times as
                long. It does not hold the inputs, in the weights' dtype too; strips of about 25 MB
                for each thread in methods that stream (140 MB in ``naf``); the image's colours at
                the output's size in ``loftup``, ``featup_implicit``, ``joint_bilateral`` and
                ``guided_filter``; the guidance of the whole image in ``kin`` (about 150 numbers a
                pixel) and ``featup_jbu`` (about 160, and C at 8h x 8w); what fits a network in
                ``featup_implicit``; and one output row with its temporaries, below which no piece
                goes.
            piece_bytes: what one piece with its temporaries may take of it.

        Yields:
            ``(rows, tile)``: a slice of the output's rows and the tile (B, C or K, R, W');
            together they cover the output exactly once, from top to bottom. In methods
            that commute with a head they lead to ``values`` where these alone ask for gradients.

        Raises:
            UnsupportedError: the method needs the whole output at once.

        Example:
            >>> import torch, upfeat
            >>> up = upfeat.create_upsampler("bilinear")
            >>> image, features = torch.rand(1, 3, 64, 64), torch.rand(1, 8, 4, 4)
            >>> out = torch.empty(1, 8, 64, 64)
            >>> for rows, tile in up.tiles(image, features, max_bytes=8192):
            ...     out[:, :, rows] = tile
            >>> torch.allclose(out, up(image, features), atol=1e-6)
            True
        """
        if not self.info.abilities.tiles:
            raise UnsupportedError(
                f"{self.info.name} computes its output as a whole and has no tiles(); call it "
                "directly, or ask upfeat.list_upsamplers() for another method"
            )
        if self.training and self.whole_in_training:
            raise ValueError(
                f"{self.info.name} in training mode computes whole maps of all images and has no "
                "tiles(); call .eval() first"
            )
        if is_transformed():
            raise UnsupportedError(
                f"{self.info.name} has no tiles() within transforms of torch.func or forward-mode "
                "differentiation; call it directly there"
            )
        max_bytes = check_bytes(max_bytes)
        piece_bytes = check_bytes(piece_bytes, "piece_bytes")
        size = check_call(image, features, output_size, values)
        mixed = features if values is None else values
        what, advice = "a row of the output (B, K, 1, W')", "ask for a smaller output_size"
        check_fits((*mixed.shape[:2], 1, size[1]), features, what, advice)
        self._check(image, features, size, values)
        self._warn_of_raw_image(image)
        dtype = output_dtype(features)
        image, features, mixed = self._cast(image, features, values)
        if self.streams:
            piece = min(piece_bytes, max_bytes // 2)
            pieces = self._strips(image, features, size, mixed, max_bytes - piece, piece)
        else:
            pieces = self._tiles(image, features, size, mixed, min(max_bytes, piece_bytes))
        for rows, tile in pieces:
            yield rows, tile.to(dtype)

    def query(
        self,
        image: Tensor,
        features: Tensor,
        coords: Tensor,
        values: Tensor | None = None,
        output_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Upsample at single positions, where the method can.

        Queried at the pixel centres of ``output_size`` (``upfeat.ops.coordinates.pixel_centres``),
        it gives what :meth:`forward` gives at that size; between them, what the method says there.

        Args:
            image: (B, 3, H, W), as in :meth:`forward`.
            features: (B, C, h, w).
            coords: (B, N, 2), row and column; -1 and 1 are the outer edges of the image, so the
                centre of row i of H is at (2 i + 1) / H - 1. Kept in their own dtype.
            values: (B, K, h, w); default ``features``; only where the method mixes values.
            output_size: (H', W') of the map whose pixels are asked for, default the image's size: a
                method's answer may depend on the size of a pixel.

        Returns:
            (B, N, C or K) in the dtype and on the device of ``features``.

        Raises:
            UnsupportedError: the method computes whole maps only (``info.abilities.query`` is
                False).
            ValueError: as :meth:`forward`, or positions outside the image.

        Example:
            >>> import torch, upfeat
            >>> up = upfeat.create_upsampler("loftup", feature_dim=12, num_heads=4).eval()
            >>> image, features = torch.randn(1, 3, 28, 42), torch.randn(1, 12, 2, 3)
            >>> up.query(image, features, torch.tensor([[[0.0, 0.0], [-0.3, 0.9]]])).shape
            torch.Size([1, 2, 12])
        """
        if not self.info.abilities.query:
            raise UnsupportedError(
                f"{self.info.name} computes whole maps and has no query(); call it directly and "
                "read its output where you need it, or take a method whose "
                "info.abilities.query is True"
            )
        if is_transformed():
            return self._in_transform(self._at, image, features, coords, values, output_size)
        return self._at(image, features, coords, values, output_size)

    def _at(
        self,
        image: Tensor,
        features: Tensor,
        coords: Tensor,
        values: Tensor | None,
        output_size: tuple[int, int] | None,
    ) -> Tensor:
        size = check_call(image, features, output_size, values)
        check_coords(coords, features)
        what, advice = "the guidance at output_size (B, 3, H', W')", "ask for a smaller one"
        check_fits((len(image), 3, *size), image, what, advice)
        self._check(image, features, size, values)
        self._warn_of_raw_image(image)
        dtype = output_dtype(features)
        if coords.shape[1] == 0:
            width = (features if values is None else values).shape[1]
            return features.new_empty(len(features), 0, width)
        image, features, mixed = self._cast(image, features, values)
        return self._query(image, features, coords, mixed, size).to(dtype)

    def _in_transform(self, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Compute under ``torch.func`` or forward AD, or say that the method cannot."""
        cause: RuntimeError | None = None
        reason = "it optimises for each image"
        if not self.info.abilities.per_image:
            try:
                return compute(*arguments)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # what an operator of torch lacks
                cause, reason = error, str(error).partition("\n")[0].rstrip(". ")
        raise UnsupportedError(
            f"{self.info.name} does not run within this transform of torch.func or forward-mode "
            f"differentiation ({reason}); call it on a batch, and differentiate with torch.autograd"
        ) from cause

    def _query(
        self,
        image: Tensor,
        features: Tensor,
        coords: Tensor,
        values: Tensor,
        output_size: tuple[int, int],
    ) -> Tensor:
        """Compute (B, N, K) at the positions; only called where ``abilities.query``."""
        encoder, decoder = self._graphs(image, features, values)
        if encoder:
            state = self.encode(image, features, output_size)
            return self.decode_at(state, self.encode_values(state, values), coords)
        with torch.set_grad_enabled(decoder):
            states = self._encode_items(image, features, output_size, MAP_BYTES)
            return torch.cat(
                [
                    self.decode_at(state, self.encode_values(state, values[item]), coords[item])
                    for item, state in states
                ]
            )

    def _tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        max_bytes: int,
    ) -> Iterator[Tile]:
        """Compute the output by strips; only called where ``abilities.tiles`` and nothing streams.

        What the encoder keeps is no part of ``max_bytes``.
        """
        yield from self._strips(image, features, output_size, values, MAP_BYTES, max_bytes)

    def _strips(
        self,
        image: Tensor,
        features: Tensor,
        output_size: tuple[int, int],
        values: Tensor,
        map_bytes: int,
        piece_bytes: int,
    ) -> Iterator[Tile]:
        """Encode all images within one budget, decode strips of rows within another."""
        encoder, decoder = self._graphs(image, features, values)
        graph = decoder and not encoder
        states = list(self._encode_items(image, features, output_size, map_bytes // len(image)))
        if graph:  # one for each strip
            decode, parts = self._decode_graph, [(state, values[item]) for item, state in states]
        else:
            with torch.no_grad():
                parts = [(one, self.encode_values(one, values[item])) for item, one in states]
            decode = self.decode
        row_bytes = len(image) * values.element_size()
        row_bytes *= self.row_floats(features, values, output_size)
        for rows in row_strips(output_size[0], row_bytes, piece_bytes):
            with torch.set_grad_enabled(graph):
                strips = [decode(*part, rows) for part in parts]
                tile = strips[0] if len(strips) == 1 else torch.cat(strips)  # (B, K, R, W')
            yield rows, tile

    def _check(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> None:
        """Raise ``ValueError`` for what this method cannot do; methods with limits override it."""
        width = self.config.get("feature_dim")
        if width is not None and features.shape[1] != width:
            raise ValueError(
                f"{self.info.name} was built for feature_dim={width}, got features "
                f"{shape_text(features)} with {features.shape[1]} channels; build it with "
                f"create_upsampler({self.info.name!r}, feature_dim={features.shape[1]}) or load "
                "weights trained for this backbone"
            )
        if values is not None and not self.info.abilities.mixes_values:
            raise UnsupportedError(
                f"{self.info.name} as it is built makes new features and mixes no other values; "
                "call it without values= and put the head behind it, or use a method whose "
                "info.abilities.mixes_values is True"
            )
        parameter = first_weight(self)
        if parameter is not None and parameter.device != features.device:
            raise ValueError(
                f"the weights of {self.info.name} are on {parameter.device}, the inputs on "
                f"{features.device}; move the upsampler with .to({str(features.device)!r})"
            )

    def _cast(
        self, image: Tensor, features: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Bring the inputs to the dtype of the weights, or of the features where there are none.

        Features are normalised over their channels here where ``info.feature_norm`` says so.
        """
        parameter = first_weight(self)
        dtype = features.dtype if parameter is None else parameter.dtype
        if self.info.feature_norm:
            features = channel_norm(features)
        image, features = image.to(dtype), features.to(dtype)
        return image, features, features if values is None else values.to(dtype)

    def guidance_statistics(self, backbone: "Backbone") -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and deviation of the guidance: the method's own, else the backbone's."""
        if self.info.image_mean is None or self.info.image_std is None:
            return backbone.image_mean, backbone.image_std
        return self.info.image_mean, self.info.image_std

    def guidance_image(self, image: Tensor, backbone: "Backbone") -> Tensor:
        """Normalise an image as this upsampler wants its guidance.

        Warns, as :meth:`with_backbone`, of a backbone that the weights were not trained for.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            backbone: whose features are upsampled; its normalisation counts where the method has
                none of its own.

        Returns:
            (B, 3, H, W), what :meth:`forward` takes as ``image``.

        Example:
            >>> import torch, upfeat
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> black = up.guidance_image(torch.zeros(1, 3, 1, 1), encoder)  # -mean / std
            >>> [round(value, 2) for value in black.flatten().tolist()]
            [-2.12, -2.04, -1.8]
        """
        self._warn_of_other_backbone(backbone)
        return normalize(image, *self.guidance_statistics(backbone))

    def prepare(self, image: Tensor, backbone: "Backbone") -> tuple[Tensor, Tensor]:
        """Normalise an image for the backbone and for this upsampler, whose wishes may differ.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], sides multiples of ``backbone.size_multiple``.
            backbone: whose features are upsampled.

        Returns:
            ``(pixels, guidance)``, each (B, 3, H, W): for ``backbone(pixels)`` and
            ``upsampler(guidance, features)``.

        Example:
            >>> import torch, upfeat
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> pixels, guidance = up.prepare(torch.rand(1, 3, 32, 48), encoder)
            >>> up(guidance, encoder(pixels)).shape
            torch.Size([1, 192, 32, 48])
        """
        pixels = normalize(image, backbone.image_mean, backbone.image_std)
        return pixels, self.guidance_image(image, backbone)

    def _warn_of_raw_image(self, image: Tensor) -> None:
        """Warn of guidance without normalisation, where it is known which it should have."""
        known = self.info if self.info.image_mean is not None else self.trained_for
        if known is not None and known.image_mean is not None and known.image_std is not None:
            name = self.info.name
            warn_of_raw_image(self._warned_of, image, known.image_mean, known.image_std, name)

    def with_backbone(self, backbone: Callable[[Tensor], Tensor] | None) -> Self:
        """Return the upsampler for features of this backbone, ``backbone(image) -> (B, C, h, w)``.

        Only a method that looks at further views of the image (``info.views``: FeatUp's implicit
        one) makes use of it; every other returns itself. ``upfeat.Pipeline`` and the protocols of
        ``upfeat.evaluation`` call it. Weights that were trained for another backbone are warned
        of, once for each.
        """
        self._warn_of_other_backbone(backbone)
        return self

    def _warn_of_other_backbone(self, backbone: object) -> None:
        """Warn once of a backbone that the weights were not trained for, where that is known."""
        name = getattr(backbone, "name", None)
        known = self.trained_for is not None and not self.info.abilities.universal
        if not known or name is None or name in self._warned_of or torch.compiler.is_compiling():
            return
        difference = cast("TrainedFor", self.trained_for).difference(cast("Backbone", backbone))
        if difference is not None:
            self._warned_of.add(name)
            warn_user(
                f"the weights of {self.info.name} were trained for {difference}: these features "
                "mean something else to it; load weights of this backbone, or train it with "
                "upfeat train"
            )

    # -- official files --------------------------------------------------------------------------

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read constructor arguments from the shapes of an official state dict."""
        raise CheckpointError(f"{cls.info.name} has no official weight files")

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map an official state dict to this class's keys."""
        return dict(state)

    # -- own files -------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        card: str | None = None,
        backbone: "Backbone | None" = None,
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        Args:
            folder: created if need be.
            card: text of the model card (``README.md``); default: made from ``info`` and
                the configuration. A card that was written or changed by hand is kept.
            backbone: what the weights were trained for, unless they serve any; default: what
                ``trained_for`` says. ``config.json`` names it with layer and normalisation, and
                :meth:`with_backbone` of the loaded upsampler warns of another.

        Raises:
            ForeignFileError: the folder holds weights or a ``config.json`` that upfeat did not
                write.

        Example:
            >>> import tempfile, upfeat
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=32).save_pretrained(
            ...         folder
            ...     )
            ...     upfeat.Upsampler.from_pretrained(folder).config["feature_dim"]
            16
        """
        from upfeat.upsamplers.weights import TrainedFor, save_folder

        trained_for = self.trained_for if backbone is None else TrainedFor.of(backbone)
        universal = self.info.abilities.universal
        save_folder(self, Path(folder), card, None if universal else trained_for)

    @classmethod
    def from_pretrained(cls, folder_or_id: str | os.PathLike[str], **hub: Any) -> Self:
        """Load what :meth:`save_pretrained` wrote, from a folder or a Hugging Face repository.

        Args:
            folder_or_id: a folder, or a repository id such as ``"user/name"``.
            **hub: passed to ``huggingface_hub.snapshot_download`` (``revision``, ``token``, …).

        Raises:
            WeightsNotFoundError: neither a folder nor a reachable repository.
            CheckpointError: the files do not fit, or hold a method other than this class.
        """
        from upfeat.upsamplers.weights import load_folder

        model = load_folder(folder_or_id, **hub)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{folder_or_id} holds a {type(model).__name__}, not a {cls.__name__}; "
                "load it with upfeat.Upsampler.from_pretrained"
            )
        return model

    def extra_repr(self) -> str:
        """Show the configuration in ``print(upsampler)``."""
        return json.dumps(self.config, default=str)


class WholeMapUpsampler(Upsampler):
    """Base class of the methods that compute their output as a whole.

    Stacks of x2 stages and networks without row structure write one plain, differentiable function,
    :meth:`upsample`, and have neither tiles nor single positions.

    Attributes:
        channels_last: whether image and features are brought to that memory format where no graph
            is recorded, which suits networks of convolutions on a CPU.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.upsamplers import WholeMapUpsampler
        >>> class Doubled(WholeMapUpsampler):
        ...     info = upfeat.UpsamplerInfo(name="doubled", summary="Twice the features.")
        ...
        ...     def upsample(self, image, features, output_size, values):
        ...         return torch.nn.functional.interpolate(2 * values, output_size)
        >>> Doubled()(torch.rand(1, 3, 4, 4), torch.ones(1, 8, 2, 2)).unique().tolist()
        [2.0]
    """

    channels_last: ClassVar[bool] = False

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Compute the output; the arguments are checked and of the type of the weights.

        Args:
            image: (B, 3, H, W).
            features: (B, C, h, w).
            output_size: (H', W').
            values: (B, K, h, w), what is mixed; ``features`` itself where the caller gave none.

        Returns:
            (B, K, H', W').
        """
        raise NotImplementedError(f"{type(self).__name__} must implement upsample")

    def _upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Call :meth:`upsample`; without a graph within the streaming executor where it streams."""
        if any(self._graphs(image, features, values)):
            return self.upsample(image, features, output_size, values)
        shared = values is features
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
            features = features.contiguous(memory_format=torch.channels_last)
        if not self.streams:
            return self.upsample(image, features, output_size, features if shared else values)
        maps = []
        for one in range(len(image)):
            item = slice(one, one + 1)
            own = features[item]
            mixed = own if shared else values[item]
            with torch.no_grad(), stream.bounded(MAP_BYTES):
                maps.append(self.upsample(image[item], own, output_size, mixed))
        return torch.cat(maps)
