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

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from upfeat.errors import UnsupportedError, check_bytes, check_call, check_coords, shape_text
from upfeat.ops import channel_norm
from upfeat.ops.runtime import (
    MAP_BYTES,
    TILE_BYTES,
    check_fits,
    is_transformed,
    output_dtype,
    tracing,
)
from upfeat.upsamplers.rows import decode_positions, decode_strips, decode_whole, first_weight
from upfeat.upsamplers.saving import GuidedModel
from upfeat.upsamplers.weights import (
    ANY_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NO_EXPORT,
    Abilities,
    Exports,
    UpsamplerInfo,
)

__all__ = [
    "ANY_SIZE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NO_EXPORT",
    "Abilities",
    "Exports",
    "Tile",
    "Upsampler",
    "UpsamplerInfo",
    "WholeMapUpsampler",
]

Tile = tuple[slice, Tensor]


class Upsampler(GuidedModel):
    """Base class of all feature upsamplers.

    Call it as ``upsampler(image, features, output_size=None, values=None)``; see :meth:`forward`.

    Attributes:
        info: what the method is and, in ``info.abilities``, can do; an instance with published
            weights or other options narrows the class's.
        streams: whether the encoder works at full resolution; it then encodes one image at a time
            where no graph is recorded, by row strips (``upfeat.ops.stream``).
        bounded_decode: whether decoding all rows at once keeps little beside the output; a plain
            call then does so, in one strip.
        overlap: about how many rows' work a strip repeats of its neighbours'; strips of a plain
            call are not so low that this counts.
        whole_in_training: whether training mode needs whole maps: batch norm, dropout of channels.
        feature_scale: deviation over the channels of what the method regresses; it counts for those
            that regress channel-normalised features alone.
        positions_apart: whether ``decode_at`` treats each position by itself; without a graph it is
            then called for some at a time, as many as pixels of a row strip.
        channels_last: whether image and features are brought to that memory format where no graph
            is recorded, which suits networks of convolutions on a CPU.

    Further attributes are those of ``SavedModel``: ``config``, ``trained_for``.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("bilinear")
        >>> up(torch.rand(1, 3, 32, 48), torch.rand(1, 8, 4, 6)).shape
        torch.Size([1, 8, 32, 48])
    """

    info: UpsamplerInfo
    feature_scale: float = 1.0
    streams: bool = False
    bounded_decode: ClassVar[bool] = False
    overlap: ClassVar[int] = 0
    whole_in_training: ClassVar[bool] = False
    positions_apart: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False

    # -- calling ---------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | int | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Upsample ``features`` to ``output_size`` under the guidance of ``image``.

        Args:
            image: (B, 3, H, W), normalised as ``info.image_mean`` and ``info.image_std`` say
                (None: as for the backbone). :meth:`prepare` does it, ``upfeat.Pipeline`` by
                itself; an image in [0, 1] or [0, 255] where that is wrong is warned of once.
            features: (B, C, h, w).
            output_size: (H', W'), or the shorter side with the image's aspect; default (H, W).
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
        output_size: Sequence[int] | int | None,
        values: Tensor | None,
    ) -> Tensor:
        tool = tracing()
        if tool is not None and not getattr(self.info.abilities, tool):
            raise UnsupportedError(
                f"{self.info.name} cannot be traced by torch.{tool}: what it does depends on the "
                "numbers in its inputs; call it directly"
            )
        size = check_call(image, features, output_size, values)
        channels = (features if values is None else values).shape[1]
        advice = "ask for a smaller output_size, or for tiles() where the method has them"
        check_fits((image.shape[0], channels, *size), features, "the output (B, K, H', W')", advice)
        inputs = self._admit(image, features, size, values)
        return decode_whole(self, *inputs, size).to(output_dtype(features))

    # -- a method's two functions ----------------------------------------------------------------

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Any:
        """Compute what all output rows need, once per image: a ``NamedTuple`` of tensors (B, ...).

        The arguments are those of :meth:`forward`, checked and in the type of the weights.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode")

    def encode_values(self, state: Any, values: Tensor) -> Tensor:
        """Compute what all output rows need of the values (B, K, h, w); by default themselves.

        They are the features, the same tensor, where the caller gave none.
        """
        return values

    def decode(self, state: Any, values: Tensor, rows: slice) -> Tensor:
        """Compute the output's rows ``slice(start, stop)``: (B, K, R, W').

        State and values are what :meth:`encode` and :meth:`encode_values` return.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement decode")

    def decode_at(self, state: Any, values: Tensor, coords: Tensor) -> Tensor:
        """Compute the output at positions (B, N, 2): (B, N, K); where ``abilities.query``."""
        raise NotImplementedError(f"{type(self).__name__} must implement decode_at")

    @property
    def unused_parameters(self) -> int:
        """Parameters of the original that never reach its output; they are not held here."""
        return 0

    def row_floats(self, features: Tensor, values: Tensor, output_size: tuple[int, int]) -> int:
        """Return how many numbers one output row of one image takes with its temporaries.

        The default counts the row and one copy. It decides how high a strip is, nothing else.
        """
        return 2 * values.shape[1] * output_size[1]

    def tiles(
        self,
        image: Tensor,
        features: Tensor,
        output_size: Sequence[int] | int | None = None,
        values: Tensor | None = None,
        *,
        max_bytes: int = MAP_BYTES + TILE_BYTES,
        piece_bytes: int = TILE_BYTES,
    ) -> Iterator[Tile]:
        """Yield the output in pieces, so that memory does not grow with its size.

        Args:
            image: (B, 3, H, W), as in :meth:`forward`.
            features: (B, C, h, w).
            output_size: as in :meth:`forward`.
            values: (B, K, h, w); default ``features``.
            max_bytes: what the call may take. Methods whose encoder streams hold full-resolution
                maps within it and compute anew what does not fit, which takes several times as
                long. It does not hold the inputs, in the weights' dtype too; strips of about 25 MB
                for each thread in methods that stream (140 MB in ``naf`` and
                ``raysup``); the image's colours at the output's size in ``loftup``,
                ``featup_implicit``, ``joint_bilateral`` and ``guided_filter``; the guidance of the
                whole image in ``kin`` (about 150 numbers a pixel) and ``featup_jbu`` (about 160,
                and C at 8h x 8w); the queries of the output's size in ``pixelup`` (six times D);
                the image at 8 patches a cell in ``vit_up``; what fits a network in
                ``featup_implicit``; and one output row with its temporaries,
                below which no piece goes.
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
        max_bytes, piece_bytes = check_bytes(max_bytes), check_bytes(piece_bytes, "piece_bytes")
        size = check_call(image, features, output_size, values)
        channels = (features if values is None else values).shape[1]
        what, advice = "a row of the output (B, K, 1, W')", "ask for a smaller output_size"
        check_fits((image.shape[0], channels, 1, size[1]), features, what, advice)
        inputs = self._admit(image, features, size, values)
        dtype = output_dtype(features)
        if self.streams:
            piece_bytes = min(piece_bytes, max_bytes // 2)
            map_bytes = max_bytes - piece_bytes
        else:  # what the encoder keeps is no part of the budget
            map_bytes, piece_bytes = MAP_BYTES, min(max_bytes, piece_bytes)
        for rows, tile in decode_strips(self, *inputs, size, map_bytes, piece_bytes):
            yield rows, tile.to(dtype)

    def query(
        self,
        image: Tensor,
        features: Tensor,
        coords: Tensor,
        values: Tensor | None = None,
        output_size: Sequence[int] | int | None = None,
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
        output_size: Sequence[int] | int | None,
    ) -> Tensor:
        size = check_call(image, features, output_size, values)
        check_coords(coords, features)
        what, advice = "the guidance at output_size (B, 3, H', W')", "ask for a smaller one"
        check_fits((len(image), 3, *size), image, what, advice)
        inputs = self._admit(image, features, size, values)
        if coords.shape[1] == 0:
            channels = (features if values is None else values).shape[1]
            return features.new_empty(len(features), 0, channels)
        return decode_positions(self, *inputs, size, coords).to(output_dtype(features))

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

    def _admit(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return image, features and what is mixed, checked for this method and cast."""
        self._check(image, features, output_size, values)
        self._warn_of_raw_image(image)
        return self._cast(image, features, values)

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


class Inputs(NamedTuple):
    """The arguments of :meth:`WholeMapUpsampler.upsample` but the values."""

    image: Tensor  # (B, 3, H, W)
    features: Tensor  # (B, C, h, w)
    output_size: tuple[int, int]


class WholeMapUpsampler(Upsampler):
    """Base class of the methods that compute their output as a whole.

    Stacks of x2 stages and networks without row structure write one plain, differentiable function,
    :meth:`upsample`, and have neither tiles nor single positions.

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

    bounded_decode = True

    def upsample(
        self, image: Tensor, features: Tensor, output_size: tuple[int, int], values: Tensor
    ) -> Tensor:
        """Compute the output (B, K, H', W'); the arguments are as in :meth:`Upsampler.encode`.

        The values (B, K, h, w) are mixed; they are ``features`` itself where the caller gave none.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement upsample")

    def encode(self, image: Tensor, features: Tensor, output_size: tuple[int, int]) -> Inputs:
        """Keep the inputs: the output is one map, which depends on the values."""
        return Inputs(image, features, output_size)

    def encode_values(self, state: Inputs, values: Tensor) -> Tensor:
        """Compute the whole output, of which rows are read."""
        return self.upsample(*state, values)

    def decode(self, state: Inputs, values: Tensor, rows: slice) -> Tensor:
        """Read rows of the output."""
        return values[:, :, rows]
