"""Image(s) in, dense features out: backbone + upsampler + sizes + both normalisations.

Legend: ``B`` batch, ``C`` feature channels, ``K`` channels of a head, ``h w`` low-resolution grid,
``H W`` an image's own size. Sizes are ``(height, width)``.

Geometry of one image:

* *own size*: as it was read, EXIF orientation applied;
* *input size*: what ``input_size`` asks for; backbone and upsampler see the same picture;
* *padded size*: the input size rounded up to the backbone's ``size_multiple`` (``fit="pad"``), the
  new pixels at the right and bottom being the image mirrored at its edge. With ``fit="resize"``
  the picture is instead resized to the nearest multiples, and padded and input size are one;
  ``fit="exact"`` takes multiples only.

The backbone sees the padded image, and the upsampler works on the padded grid. ``low`` keeps every
cell that holds a part of the image; ``high`` covers exactly the image.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias, overload

import torch
from torch import Tensor

from upfeat._outputs import Encoded, PipelineOutput, dtype_text
from upfeat.backbones.wrapping import AnyBackbone, as_backbone
from upfeat.data.feature_cache import FeatureCache, weights_fingerprint
from upfeat.data.images import ImageSource, read_image
from upfeat.data.sizes import (
    Canvas,
    Frame,
    Size,
    SizeRequest,
    fit_multiple,
    mirror_to,
    resize,
    resolve_size,
)
from upfeat.errors import shape_text
from upfeat.loading import checked_dtype, converted, fitting_upsampler, place_of
from upfeat.ops.coordinates import pixel_centres
from upfeat.ops.images import known_normalized, normalize
from upfeat.ops.runtime import check_fits
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.fitted import with_views

__all__ = ["Encoded", "Head", "Pipeline", "PipelineOutput"]

ImageList: TypeAlias = list[Any] | tuple[ImageSource, ...]
Head: TypeAlias = Callable[[Tensor], Tensor]


class Pipeline:
    """From images to pixel-dense features in one call.

    It reads what it is given, brings it to a size that the backbone takes, normalises once as the
    backbone and once as the upsampler was trained, runs both without gradients and cuts the result
    back to the image. Images must come un-normalised: RGB in [0, 1] or 8 or 16 bit. What it returns
    are ordinary tensors without a graph: a head can be trained on them, and they may be changed.

    Args:
        backbone: a name (``"timm/vit_small_patch14_dinov2.lvd142m"``), an ``upfeat.Backbone``, a
            network of timm, a backbone of transformers or a function that returns (B, C, h, w);
            ``upfeat.backbones.as_backbone`` says what is made of each.
        upsampler: what ``upfeat.load_upsampler`` reads (``"kin.upfeat"``, a saved folder, a hub
            id), or an ``upfeat.Upsampler``; None for a pipeline that gives low-resolution features
            only, until :meth:`with_upsampler` adds one.
        input_size: size at which the networks see the image: None for its own, an int for the
            shorter side, a float for a factor, or (height, width). Resizing is bicubic with
            antialiasing. A backbone's cost grows with the square of the area: a camera photo of
            12 megapixels wants ``input_size`` of a few hundred.
        output_size: size of ``high``, in the same terms, relative to the image as read; None for
            the image's own size.
        guidance_size: size to which the image is reduced for the upsampler, in the same terms,
            relative to ``input_size``; None for no reduction. Encoders that look at the whole image
            (``jafar``, ``anyup``, ``naf``, ``kin``) cost in proportion to its area; detail finer
            than its pixels is lost. It never enlarges.
        fit: what to do with sides that are no multiple of ``backbone.size_multiple``: ``"pad"``
            mirrors the image over its right and bottom edge and cuts the result back, ``"resize"``
            changes the aspect ratio slightly, ``"exact"`` refuses them.
        dtype: dtype in which both networks run, such as ``torch.bfloat16``; None leaves them as
            they are. ``low`` and ``high`` come in the backbone's dtype.
        device: where both run, such as ``"cuda"``; None for where the backbone is. Modules that
            must be converted or moved are copied first, the caller's stay as they are.
        batch_size: the most images that run at once; lists are grouped by size.
        cache: folder in which features are kept, by image and by the backbone's weights; None
            keeps none. What is kept, and so what is returned with a cache, is ``cache_dtype``.
        cache_dtype: of the kept features, ``torch.float16`` or ``torch.float32``.

    Raises:
        ValueError: an argument is out of range, or backbone and upsampler do not fit each other.
        UnsupportedError: the upsampler needs more than image and features.
        UnknownNameError, WeightsNotFoundError: a name or its weights cannot be found.

    Example:
        >>> import torch, upfeat
        >>> pipe = upfeat.Pipeline("upfeat/vit_compact_patch16", "kin.upfeat")
        >>> pipe(torch.rand(3, 45, 60))
        PipelineOutput(image=(3, 45, 60), low=(192, 3, 4), high=(192, 45, 60), float32, cpu)
        >>> pipe.to(torch.bfloat16)
        Pipeline('upfeat/vit_compact_patch16', 'kin', bfloat16, cpu)
    """

    def __init__(
        self,
        backbone: AnyBackbone,
        upsampler: Upsampler | str | os.PathLike[str] | None = None,
        *,
        input_size: SizeRequest = None,
        output_size: SizeRequest = None,
        guidance_size: SizeRequest = None,
        fit: Literal["pad", "resize", "exact"] = "pad",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 8,
        cache: str | os.PathLike[str] | None = None,
        cache_dtype: torch.dtype = torch.float16,
    ) -> None:
        if fit not in ("pad", "resize", "exact"):
            raise ValueError(f"fit must be 'pad', 'resize' or 'exact', got {fit!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        dtype = None if dtype is None else checked_dtype(dtype)
        sizes = {"input_size": input_size, "guidance_size": guidance_size}
        for name, size in (sizes | {"output_size": output_size}).items():
            resolve_size(size, (1, 1), name)
        if isinstance(backbone, Upsampler):
            raise ValueError(
                f"{backbone.info.name} is an upsampler; the order is Pipeline(backbone, upsampler)"
            )
        backbone = as_backbone(backbone)
        upsampler = fitting_upsampler(upsampler, backbone)
        networks = [backbone] if upsampler is None else [backbone, upsampler]
        device = torch.device(device) if device is not None else place_of(*networks).device
        self.backbone = converted(backbone, device, dtype)
        self.input_size = input_size
        self.guidance_size = guidance_size
        self.output_size = output_size
        self.fit = fit
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype or place_of(self.backbone).dtype
        self._asked_dtype = dtype
        self._upsampler = None if upsampler is None else self._joined(upsampler)
        self._cache_arguments = None if cache is None else (cache, cache_dtype)
        self.cache = self._open_cache()

    @property
    def upsampler(self) -> Upsampler:
        """The upsampler, on the pipeline's device.

        Raises:
            ValueError: there is none.
        """
        if self._upsampler is None:
            raise ValueError("this pipeline has no upsampler; add one with with_upsampler()")
        return self._upsampler

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name, layer and fingerprint of the weights of the backbone, for records of results."""
        weights = weights_fingerprint(self.backbone.state_dict())
        known = {"name": self.backbone.name, "layer": self.backbone.layer, "weights": weights}
        dtype = getattr(self.backbone, "autocast_dtype", None)  # of loading.under_autocast
        return known if dtype is None else known | {"dtype": dtype_text(dtype)}

    def _open_cache(self) -> FeatureCache | None:
        if self._cache_arguments is None:
            return None
        folder, dtype = self._cache_arguments
        key = {"backbone" if name == "name" else name: v for name, v in self.identity.items()}
        return FeatureCache(folder, key, dtype)

    def to(self, *targets: torch.device | torch.dtype | str | int, **named: Any) -> Self:
        """Move and convert both networks, as ``nn.Module.to`` does; returns the pipeline itself.

        Takes a device, a floating point dtype, or both, also as ``device=`` and ``dtype=``. The
        modules that came from the caller stay as they are: what must change is copied.
        """
        for target in targets:
            named["dtype" if isinstance(target, torch.dtype) else "device"] = target
        if unknown := named.keys() - {"device", "dtype"}:
            raise TypeError(f"Pipeline.to takes device and dtype, got {', '.join(sorted(unknown))}")
        device, dtype = named.get("device"), named.get("dtype")
        if dtype is not None:
            self._asked_dtype = checked_dtype(dtype)
        if device is not None:
            self.device = torch.device(device)
        self.backbone = converted(self.backbone, self.device, self._asked_dtype)
        self.dtype = self._asked_dtype or place_of(self.backbone).dtype
        if self._upsampler is not None:
            self._upsampler = self._joined(self._upsampler)
        self.__dict__.pop("identity", None)  # the weights may have been rounded
        self.cache = self._open_cache()
        return self

    def __repr__(self) -> str:
        """Show the names of both networks, where and in which dtype they run, and the sizes."""
        parts = [repr(self.backbone.name)]
        parts += [] if self._upsampler is None else [repr(self._upsampler.info.name)]
        names = ("input_size", "output_size", "guidance_size")
        sizes = {name: getattr(self, name) for name in names}
        parts += [f"{name}={size}" for name, size in sizes.items() if size is not None]
        return f"Pipeline({', '.join([*parts, dtype_text(self.dtype), str(self.device)])})"

    def with_upsampler(self, upsampler: Upsampler | str | os.PathLike[str]) -> "Pipeline":
        """Return a pipeline of the same backbone, sizes and cache with this upsampler.

        What one of them encoded the other can upsample. The upsampler is copied if its dtype or
        device must change.

        Example:
            >>> import torch, upfeat
            >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
            >>> pipe = upfeat.Pipeline(backbone)
            >>> encoded = pipe.encode(torch.rand(3, 16, 16))
            >>> for name in ("nearest", "bilinear"):
            ...     high = pipe.with_upsampler(name).upsample(encoded)
        """
        other = copy.copy(self)
        loaded = fitting_upsampler(upsampler, self.backbone)
        other._upsampler = None if loaded is None else self._joined(loaded)
        return other

    def _joined(self, upsampler: Upsampler) -> Upsampler:
        moved = converted(upsampler, self.device, self._asked_dtype)
        joined = with_views(moved, self.backbone)
        joined.warn_of_other_backbone(self.backbone)
        return joined

    # -- calling ---------------------------------------------------------------------------------

    @overload
    def __call__(
        self, images: ImageSource, output_size: SizeRequest = None, head: Head | None = None
    ) -> PipelineOutput: ...

    @overload
    def __call__(
        self, images: ImageList, output_size: SizeRequest = None, head: Head | None = None
    ) -> list[PipelineOutput]: ...

    def __call__(
        self,
        images: ImageSource | ImageList,
        output_size: SizeRequest = None,
        head: Head | None = None,
    ) -> PipelineOutput | list[PipelineOutput]:
        """Return low- and high-resolution features of one image, a batch or a list of images.

        Args:
            images: a path, PIL image, numpy array (H, W, 3) or tensor (3, H, W), as
                ``upfeat.data.read_image`` takes them; a batch tensor (B, 3, H, W); or a list of the
                former with any sizes, for which a list is returned.
            output_size: overrides the pipeline's.
            head: as in :meth:`upsample`.

        Raises:
            ValueError: an image cannot be read or is not in [0, 1].
        """
        encoded = self.encode(images)
        if isinstance(encoded, list):
            return self._upsample_list(encoded, output_size, head)
        return encoded.with_high(self.upsample(encoded, output_size, head))

    def low(self, images: ImageSource | ImageList) -> Tensor | list[Tensor]:
        """Return the backbone's features only: (C, h, w), a batch or a list for such."""
        encoded = self.encode(images)
        return [e.low for e in encoded] if isinstance(encoded, list) else encoded.low

    @overload
    def encode(self, images: ImageSource, input_size: SizeRequest = None) -> Encoded: ...

    @overload
    def encode(self, images: ImageList, input_size: SizeRequest = None) -> list[Encoded]: ...

    def encode(
        self, images: ImageSource | ImageList, input_size: SizeRequest = None
    ) -> Encoded | list[Encoded]:
        """Read, prepare and run the backbone: the first half of a call.

        Use it where the features decide how to upsample, as for a PCA picture. ``input_size``
        overrides the pipeline's.
        """
        if isinstance(images, list | tuple):
            return self._encode_list([read_image(image) for image in images], input_size)
        if isinstance(images, Tensor) and images.dim() == 4:
            if not len(images):
                raise ValueError(f"the batch of images is empty: {shape_text(images)}")
            batch = torch.stack([read_image(image) for image in images])
            return self._encode(batch, input_size, single=False)
        return self._encode(read_image(images)[None], input_size)

    def join(self, image: ImageSource, features: Tensor) -> Encoded:
        """Return what :meth:`encode` returns, from an image and features that were kept.

        Args:
            image: one image.
            features: (C, h, w), the grid of the padded image: ``encoded.features[0]``.

        Example:
            >>> import torch, upfeat
            >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
            >>> pipe = upfeat.Pipeline(backbone, "bilinear")
            >>> image = torch.rand(3, 45, 60)
            >>> kept = pipe.encode(image).features[0]
            >>> torch.equal(pipe.upsample(pipe.join(image, kept)), pipe(image).high)
            True
        """
        if features.dim() != 3 or len(features) != self.backbone.dim:
            raise ValueError(
                f"features must be (C, h, w) with the {self.backbone.dim} channels of "
                f"{self.backbone.name}, got {shape_text(features)}"
            )
        with self._inference():
            picture, prepared, frame = self._prepared(read_image(image)[None])
            kept = features.detach()[None].to(self.device, self.dtype)
        return Encoded(picture, prepared, kept, frame)

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features (B, C, h, w) of normalised images, from the cache if it has them."""
        if self.cache is None:
            return self.backbone(pixels)
        # One by one: what is kept of an image must not depend on its neighbours in a batch.
        return torch.cat(
            [self.cache(known_normalized(one), self.backbone) for one in pixels.split(1)]
        )

    def upsample(
        self, encoded: Encoded, output_size: SizeRequest = None, head: Head | None = None
    ) -> Tensor:
        """Upsample what :meth:`encode` returned: the second half of a call.

        Args:
            encoded: one image, or one batch of equal sizes.
            output_size: overrides the pipeline's.
            head: a linear (or affine) map of channels at each pixel, (B, C, h, w) to (B, K, h, w),
                such as ``PCABasis.project`` or a 1x1 convolution. Only its K channels are held
                at the output size: if ``info.abilities.linear`` it is applied to the
                low-resolution features, else to the pieces of the upsampled map as they come.
                Only a method without ``tiles()`` builds its whole map first.

        Returns:
            (C or K, H', W') in the dtype of the features, with a batch axis for a batch.
        """
        request = self.output_size if output_size is None else output_size
        size = resolve_size(request, encoded.frame.own)
        frame = encoded.frame
        # The output grid continued over the padding; fractional ends are resampled in Canvas.
        height, width = (
            -(-out * pad // inner)
            for out, pad, inner in zip(size, frame.padded, frame.input, strict=True)
        )
        inner = frame.input
        window = (height * inner[0] / frame.padded[0], width * inner[1] / frame.padded[1])
        canvas = Canvas(size, (height, width), window)
        channels = encoded.features.shape[1] if head is None else 1
        shape, advice = (len(encoded.features), channels, *size), "ask for a smaller output_size"
        check_fits(shape, encoded.features, "the output (B, K, H', W')", advice)
        with self._inference():
            for rows, tile in self.pieces(encoded, canvas.padded, head):
                if canvas.below(rows):
                    break
                canvas.put(rows, tile)
            high = canvas.result()
        high = high.detach()  # as in _encode
        return high[0] if encoded.single else high

    # -- steps -----------------------------------------------------------------------------------

    def _encode(self, image: Tensor, input_size: SizeRequest, single: bool = True) -> Encoded:
        """Prepare a batch (B, 3, H, W) of equal sizes and run the backbone."""
        with self._inference():
            image, prepared, frame = self._prepared(image, input_size)
            pixels = normalize(prepared, self.backbone.image_mean, self.backbone.image_std)
            features = self.features(known_normalized(pixels.to(self.dtype)))
        # A view that was made without gradients refuses in-place changes that have some.
        return Encoded(image, prepared, features.detach(), frame, single)

    def _prepared(
        self, image: Tensor, input_size: SizeRequest = None
    ) -> tuple[Tensor, Tensor, Frame]:
        """Return a batch on the device, as the networks see it before normalisation, and sizes."""
        frame = self.frame((image.shape[-2], image.shape[-1]), input_size)
        image = image.detach().to(self.device)
        return image, mirror_to(resize(image, frame.input), frame.padded), frame

    def _encode_list(self, images: list[Tensor], input_size: SizeRequest) -> list[Encoded]:
        results: dict[int, Encoded] = {}
        for indices in _groups([image.shape for image in images], self.batch_size):
            stacked = torch.stack([images[i].to(self.device) for i in indices])
            results |= zip(indices, self._encode(stacked, input_size).images(), strict=True)
        return [results[i] for i in range(len(images))]

    def _upsample_list(
        self, encoded: list[Encoded], output_size: SizeRequest, head: Head | None
    ) -> list[PipelineOutput]:
        results: dict[int, PipelineOutput] = {}
        for indices in _groups([each.frame for each in encoded], self.batch_size):
            batch = Encoded.batch([encoded[i] for i in indices])
            high = self.upsample(batch, output_size, head)
            # By index: the views that iteration gives refuse in-place changes.
            results |= {i: encoded[i].with_high(high[row]) for row, i in enumerate(indices)}
        return [results[i] for i in range(len(encoded))]

    def pieces(
        self, encoded: Encoded, size: Size, head: Head | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the upsampled map, or the head of it, in pieces of bounded memory.

        Args:
            encoded: as in :meth:`upsample`.
            size: (H', W') of the map of the padded image; without padding, of the image's.
            head: as in :meth:`upsample`.

        Yields:
            A slice of the rows, from top to bottom, and the tile (B, C or K, R, W'). Run it where
            no gradients are recorded.
        """
        features, info = encoded.features, self.upsampler.info
        guidance = self.guidance(encoded)
        values = None
        if head is not None and info.abilities.linear:
            values, head = head(features), None
        if info.abilities.tiles:
            pieces = self.upsampler.tiles(guidance, features, size, values)
        else:
            whole = self.upsampler(guidance, features, size, values)
            pieces = iter([(slice(0, size[0]), whole)])
        for rows, tile in pieces:
            yield rows, tile if head is None else head(tile).to(tile.dtype)

    def guidance(self, encoded: Encoded) -> Tensor:
        """Return what the upsampler looks at, (B, 3, H, W): the image, reduced and normalised."""
        image = encoded.prepared
        if self.guidance_size is not None:
            size = resolve_size(self.guidance_size, encoded.frame.input, "guidance_size")
            own = encoded.frame.input
            # The padding is reduced by the same factor as the image.
            tall, wide = (
                max(1, round(side * min(asked / inner, 1)))
                for side, asked, inner in zip(encoded.frame.padded, size, own, strict=True)
            )
            image = resize(image, (tall, wide))
        return self.upsampler.guidance_image(image, self.backbone)

    def at(self, encoded: Encoded, size: Size, positions: Tensor) -> Tensor:
        """Return upsampled features at some positions only, by ``query()`` where there is one.

        Args:
            encoded: one image that was not padded.
            size: (H', W') of the map that the positions are of.
            positions: (P,) flat positions, row times W' plus column.

        Returns:
            (P, C) in the dtype of the features.
        """
        positions = positions.to(self.device)
        with self._inference():
            if self.upsampler.info.abilities.query:
                guidance = self.guidance(encoded)
                # float64: the coordinate codes of some methods have very high frequencies
                centres = pixel_centres(size, self.device, torch.float64)[positions][None]
                found = self.upsampler.query(guidance, encoded.features, centres, output_size=size)
                return found[0]
            row, col = positions // size[1], positions % size[1]
            found = encoded.features.new_empty(len(positions), encoded.features.shape[1])
            for rows, tile in self.pieces(encoded, size):
                inside = (row >= rows.start) & (row < rows.stop)
                # (C, P) -> (P, C)
                found[inside] = tile[0, :, row[inside] - rows.start, col[inside]].T
            return found

    def frame(self, own: Size, input_size: SizeRequest = None) -> Frame:
        """Return the sizes that an image of its own size (H, W) has on its way, or raise."""
        request = self.input_size if input_size is None else input_size
        size = resolve_size(request, own, "input_size")
        backbone = self.backbone
        fixed = backbone.fixed_size
        if self.fit == "exact":  # the backbone refuses what it cannot take
            return Frame(own, size, size)
        if fixed is not None and size != fixed and self.fit == "pad":
            raise ValueError(
                f"{backbone.name} takes images of {fixed} only, got {size}; use "
                f"Pipeline(..., fit='resize') or input_size={fixed}"
            )
        if fixed is not None:  # whatever its stride: an incomplete last cell is the network's own
            return Frame(own, fixed, fixed)
        resized, padded = fit_multiple(size, backbone.size_multiple, pad=self.fit == "pad")
        return Frame(own, resized, padded)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Run without gradients and in eval mode; modes are put back afterwards.

        Not in inference mode: no head could be trained on the tensors that come out of it.
        """
        upsampler = self._upsampler
        training = [] if upsampler is None else [m for m in upsampler.modules() if m.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def _groups(keys: Sequence[object], batch_size: int) -> list[list[int]]:
    """Return the positions of equal keys, at most ``batch_size`` together."""
    together: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        together.setdefault(key, []).append(i)
    return [
        indices[start : start + batch_size]
        for indices in together.values()
        for start in range(0, len(indices), batch_size)
    ]
