"""Features for the protocols: low-resolution ones once, upsampled ones by any method.

Legend: ``C`` feature channels, ``K`` value channels, ``P`` positions, ``h w`` feature grid, ``H W``
image as the networks see it, ``H' W'`` output. Sizes are ``(height, width)``.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import FeatureCache
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.sizes import Size, resize
from upfeat.ops.coordinates import pixel_centres
from upfeat.ops.images import normalize
from upfeat.upsamplers import Abilities, Upsampler, UpsamplerInfo, WholeMapUpsampler
from upfeat.upsamplers.fitted import with_views

__all__ = ["CallableUpsampler", "DenseFeatures", "Encoded", "LowRes", "Method"]

# An output above this is computed in tiles where the method has them.
WHOLE_BYTES = 512 * 2**20


class CallableUpsampler(WholeMapUpsampler):
    """Any function as an upsampler, so that the protocols can measure it.

    Its guidance is the backbone's own input. Nothing is assumed of it: no tiles, no single
    positions, no head in front of it.

    Args:
        function: of image (B, 3, H, W), features (B, C, h, w) and output size (H', W'); returns
            (B, C, H', W'). In results its name stands for it, with the weights of an
            ``nn.Module``.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.dense import CallableUpsampler
        >>> def bicubic(image, features, output_size):
        ...     return torch.nn.functional.interpolate(features, output_size, mode="bicubic")
        >>> up = CallableUpsampler(bicubic)
        >>> up(torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)).shape, up.info.name
        (torch.Size([1, 5, 8, 8]), 'bicubic')
    """

    info = UpsamplerInfo(
        name="callable",
        summary="A function of the user's.",
        abilities=Abilities(mixes_values=False, universal=True, compile=False, export=False),
    )

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.config = {}  # a function's text would differ from run to run
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self.info = dataclasses.replace(self.info, name=name)

    def upsample(
        self, image: Tensor, features: Tensor, output_size: Size, values: Tensor
    ) -> Tensor:
        """Call the function; ``values`` are the features."""
        return self.function(image, features, output_size)


@dataclass(frozen=True, init=False)
class Method:
    """An upsampler, or any function of the same arguments, under a label of the user's choice.

    Args:
        label: in tables and file names.
        upsampler: what is measured, in evaluation mode; a function that is no
            :class:`~upfeat.upsamplers.Upsampler` becomes a :class:`CallableUpsampler`.

    Attributes:
        identity: name, configuration and fingerprint of the weights.

    Example:
        >>> import upfeat
        >>> from upfeat.evaluation.dense import Method
        >>> Method("linear", upfeat.create_upsampler("bilinear")).identity["name"]
        'bilinear'
    """

    label: str
    upsampler: Upsampler
    identity: dict[str, Any]

    def __init__(self, label: str, upsampler: Upsampler | Callable[..., Tensor]) -> None:
        if not isinstance(upsampler, Upsampler):
            upsampler = CallableUpsampler(upsampler)
        upsampler.eval()
        identity = {
            "name": upsampler.info.name,
            "config": json.loads(json.dumps(upsampler.config, default=str)),
            "weights": weights_fingerprint(upsampler.state_dict()),
        }
        if upsampler.info.views:
            identity["views"] = "of the image, through the backbone"
        for name, value in (("label", label), ("upsampler", upsampler), ("identity", identity)):
            object.__setattr__(self, name, value)

    def on(self, encode: Callable[[Tensor], Tensor]) -> Upsampler:
        """Return the upsampler for features of this encoder, which gives it views if it asks."""
        return with_views(self.upsampler, encode)


@dataclass(frozen=True)
class LowRes:
    """The row without an upsampler: the task on the backbone's own grid, if the protocol has it.

    Attributes:
        label: in tables and file names.
        identity: the name only.

    Example:
        >>> from upfeat.evaluation.dense import LowRes
        >>> LowRes().identity
        {'name': 'low-res'}
    """

    NAME: ClassVar[str] = "low-res"
    label: str = NAME

    @property
    def identity(self) -> dict[str, Any]:
        """What the settings say in the place of an upsampler."""
        return {"name": self.NAME}


@dataclass(frozen=True)
class Encoded:
    """An image as the networks see it, (1, 3, H, W) in [0, 1], with its features (1, C, h, w)."""

    image: Tensor
    features: Tensor


class DenseFeatures:
    """A frozen backbone whose features are kept on disk, and the upsampling of them.

    Args:
        backbone: on the device where everything runs.
        input_size: (H, W) to which images are resized (bicubic, antialiased) for backbone and
            guidance; exchanged for images whose longer side is the other one.
        cache: folder of the features.
        views: what makes features of further views for methods that look at some
            (``info.views``); None for the backbone.

    Attributes:
        identity: name, layer and fingerprint of the weights of the backbone.

    Example:
        >>> import tempfile, torch, upfeat
        >>> from upfeat.evaluation.dense import DenseFeatures, Method
        >>> pool = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> bilinear = Method("bilinear", upfeat.create_upsampler("bilinear"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dense = DenseFeatures(pool, (32, 48), folder)
        ...     encoded = dense.encode(torch.rand(3, 60, 40))
        ...     out = dense.upsample(bilinear, encoded, (60, 40))
        >>> encoded.features.shape, out.shape
        (torch.Size([1, 3, 6, 4]), torch.Size([1, 3, 60, 40]))
    """

    def __init__(
        self,
        backbone: Backbone,
        input_size: Size,
        cache: str | Path,
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.views = backbone if views is None else views
        self.input_size = input_size
        self.device = next(backbone.parameters(), torch.empty(0)).device
        self.identity = {
            "name": backbone.name,
            "layer": backbone.layer,
            "weights": weights_fingerprint(backbone.state_dict()),
        }
        key = {"backbone" if name == "name" else name: v for name, v in self.identity.items()}
        self.cache = FeatureCache(cache, key)

    def encode(self, image: Tensor) -> Encoded:
        """Resize an image (3, H, W) in [0, 1] and return it with its features."""
        height, width = self.input_size
        if (image.shape[1] - image.shape[2]) * (height - width) < 0:
            height, width = width, height
        small = resize(image[None], (height, width)).to(self.device)
        pixels = normalize(small, self.backbone.image_mean, self.backbone.image_std)
        return Encoded(small, self.cache(pixels, self.backbone))

    def pieces(
        self, method: Method, encoded: Encoded, size: Size, values: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the upsampled map, whole or, if it is large, in tiles of bounded memory.

        Args:
            method: what upsamples.
            encoded: of :meth:`encode`.
            size: (H', W').
            values: (1, K, h, w), what to mix instead of the features.

        Yields:
            A slice of the rows, and the tile (1, C or K, R, W').
        """
        upsampler = method.on(self.views)
        guidance = self.guidance(method, encoded)
        channels = (encoded.features if values is None else values).shape[1]
        with torch.no_grad():
            if upsampler.info.abilities.tiles and 4 * channels * size[0] * size[1] > WHOLE_BYTES:
                yield from upsampler.tiles(guidance, encoded.features, size, values)
            else:
                whole = upsampler(guidance, encoded.features, size, values)
                yield slice(0, size[0]), whole

    def upsample(
        self, method: Method, encoded: Encoded, size: Size, values: Tensor | None = None
    ) -> Tensor:
        """Return the whole upsampled map (1, C or K, H', W'); arguments as :meth:`pieces`."""
        channels = (encoded.features if values is None else values).shape[1]
        result = encoded.features.new_empty(1, channels, *size)
        for rows, tile in self.pieces(method, encoded, size, values):
            result[:, :, rows] = tile
        return result

    def at(self, method: Method, encoded: Encoded, size: Size, positions: Tensor) -> Tensor:
        """Return the upsampled features at some positions only, by ``query()`` where there is one.

        Args:
            method: what upsamples.
            encoded: of :meth:`encode`.
            size: (H', W').
            positions: (P,) flat positions, row times W' plus column.

        Returns:
            (P, C) float16 on the CPU.

        Raises:
            ValueError: a value is not finite or too large for float16.
        """
        upsampler = method.on(self.views)
        if upsampler.info.abilities.query:
            # float64: the coordinate codes of some methods have very high frequencies
            centres = pixel_centres(size, self.device, torch.float64)
            with torch.no_grad():
                answer = upsampler.query(
                    self.guidance(method, encoded),
                    encoded.features,
                    centres[positions.to(self.device)][None],
                    output_size=size,
                )
            found = answer[0].to("cpu", torch.float16)
        else:
            found = self._read(method, encoded, size, positions)
        if not bool(found.isfinite().all()):
            raise ValueError(f"{method.label} gives features that are NaN or beyond float16")
        return found

    def _read(self, method: Method, encoded: Encoded, size: Size, positions: Tensor) -> Tensor:
        """Return (P, C) float16, read from the whole map."""
        row, col = positions // size[1], positions % size[1]
        found = torch.empty(len(positions), encoded.features.shape[1], dtype=torch.float16)
        for rows, tile in self.pieces(method, encoded, size):
            inside = (row >= rows.start) & (row < rows.stop)
            here = tile[0, :, row[inside] - rows.start, col[inside]].T  # (C, P) -> (P, C)
            found[inside] = here.to("cpu", torch.float16)
        return found

    def guidance(self, method: Method, encoded: Encoded) -> Tensor:
        """Return the image (1, 3, H, W), normalised as the method wants it."""
        return method.upsampler.guidance_image(encoded.image, self.backbone)
