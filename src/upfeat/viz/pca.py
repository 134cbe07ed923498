"""PCA pictures: three principal components of a feature map as red, green and blue.

One basis and one scaling serve every picture that should be compared: low and high resolution of
an image, a folder, the frames of a video. The high-resolution map is never needed: projection is
a linear head, so ``Pipeline.upsample(encoded, head=basis.project)`` upsamples three channels where
the method allows it.
"""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.errors import shape_text
from upfeat.ops.principal import principal_components, sample_positions
from upfeat.viz.panel import PanelPicture, draw_panel, photo_pixels, to_pil

if TYPE_CHECKING:
    from PIL import Image

    from upfeat.data.images import ImageSource
    from upfeat.pipeline import Encoded, Pipeline, SizeRequest

__all__ = ["PCABasis", "PCAPicture", "pca_panel", "pca_picture", "save_png"]

_FORMAT = "upfeat-pca-1"


@dataclass(frozen=True, eq=False)
class PCABasis:
    """Three principal directions of features, with the range that maps to [0, 255].

    Args:
        mean: (C,), float32.
        components: (3, C), float32, orthonormal rows by falling variance; zero rows where the
            features have fewer than three channels.
        low, high: (3,), the projections that become 0 and 255.
        explained: (3,), the share of the variance that each component holds.

    Example:
        >>> import torch
        >>> from upfeat.viz import PCABasis
        >>> features = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> basis = PCABasis.fit(features)
        >>> basis.colors(basis.project(features)).shape
        torch.Size([1, 3, 8, 8])
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: Tensor

    @classmethod
    def fit(
        cls,
        features: Tensor | Sequence[Tensor],
        *,
        percentiles: tuple[float, float] = (1.0, 99.0),
        max_samples: int = 100_000,
        seed: int = 0,
    ) -> Self:
        """Fit a basis to one feature map or to several, such as those of a folder or a video.

        The eigenvectors of the covariance, computed in float64, are unique up to sign; the sign is
        chosen so that the loading of largest magnitude is positive. The range runs between two
        percentiles of the projections, so that outlying tokens do not wash out the picture.

        Args:
            features: (C, h, w) or (B, C, h, w), or a sequence of such with one C and any sizes.
            percentiles: of the projections; what lies outside is clipped.
            max_samples: if there are more positions, this many are drawn at random.
            seed: of that draw.

        Raises:
            ValueError: maps of different widths, no maps, or values that are not finite.
        """
        low_percent, high_percent = percentiles
        if not 0 <= low_percent < high_percent <= 100:
            raise ValueError(f"percentiles must rise within 0 to 100, got {percentiles}")
        if max_samples < 2:
            raise ValueError(f"max_samples must be at least 2, got {max_samples}")
        samples = sample_positions(features, max_samples, seed)
        mean, components, explained = principal_components(samples, 3)
        projected = (samples - mean) @ components.T  # (N, 3)
        shares = (low_percent / 100, high_percent / 100)
        low, high = (torch.quantile(projected, share, dim=0).float() for share in shares)
        return cls(mean.float(), components.float(), low, high, explained.float())

    def project(self, features: Tensor) -> Tensor:
        """Return the three principal components: (B, C, h, w) to (B, 3, h, w), float32.

        An affine map of the channels at each position: usable as the head of a pipeline. (C, h, w)
        works too.

        Raises:
            ValueError: the features have another width than the basis.
        """
        width = self.components.shape[1]
        if features.dim() not in (3, 4) or features.shape[-3] != width:
            raise ValueError(
                f"this basis takes features (B, {width}, h, w) or ({width}, h, w), got "
                f"{shape_text(features)}; fit a basis for this backbone"
            )
        components = self.components.to(features.device)
        offset = components @ self.mean.to(features.device)  # (3,)
        # (3, C), (..., C, h, w) -> (..., 3, h, w)
        projected = torch.einsum("kc,...chw->...khw", components, features.float())
        return projected - offset[:, None, None]

    def colors(self, projected: Tensor) -> Tensor:
        """Return RGB pictures, uint8, of projections (..., 3, h, w); shape and device stay.

        A component without any spread becomes middle grey.
        """
        low, high = (bound.to(projected.device)[:, None, None] for bound in (self.low, self.high))
        span = high - low
        flat = span <= 1e-6 * (1 + low.abs().maximum(high.abs()))
        unit = (projected.float() - low) / torch.where(flat, 1.0, span)
        unit = torch.where(flat, 0.5, unit)
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the basis as JSON, whole or not at all."""
        names = ("mean", "components", "low", "high", "explained")
        content = {"format": _FORMAT} | {name: getattr(self, name).tolist() for name in names}
        write_bytes(path, json.dumps(content).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        names = ("mean", "components", "low", "high", "explained")
        try:
            content = json.loads(Path(path).read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            basis = cls(*(torch.tensor(content[name], dtype=torch.float32) for name in names))
            if basis.components.shape != (3, len(basis.mean)):
                raise ValueError(f"its components are {shape_text(basis.components)}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a PCA basis ({_FORMAT}): {error}") from error
        return basis


def pca_panel(
    image: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    low_extent: tuple[float, float] = (1.0, 1.0),
    captions: Sequence[str] | None = None,
    max_side: int = 768,
) -> "Image.Image":
    """Draw image | low-resolution colours | high-resolution colours side by side.

    Args:
        image: (3, H, W) in [0, 1].
        low: (3, h, w) uint8, enlarged without smoothing, so that every cell shows.
        high: (3, H', W') uint8.
        low_extent: what ``low`` covers, see ``PipelineOutput.low_extent``.
        captions: three texts; default the sizes.
        max_side: longer side of each picture, in pixels.
    """
    if captions is None:
        shown = {"image": image, "low": low, "high": high}
        captions = [f"{name} {_size_text(picture)}" for name, picture in shown.items()]
    if len(captions) != 3:
        raise ValueError(f"captions must be three texts, got {len(captions)}")
    cells = [
        PanelPicture(photo_pixels(image), captions[0]),
        PanelPicture(low, captions[1], blocks=True, extent=low_extent),
        PanelPicture(high, captions[2]),
    ]
    return draw_panel(cells, (image.shape[-2], image.shape[-1]), max_side)


def _size_text(tensor: Tensor) -> str:
    return f"{tensor.shape[-2]}x{tensor.shape[-1]}"


@dataclass(frozen=True, eq=False)
class PCAPicture:
    """What :func:`pca_picture` returns.

    Attributes:
        panel: PIL image: image | low-resolution PCA | upsampled PCA.
        low: (3, h, w) uint8.
        high: (3, H', W') uint8.
        basis: the basis of both.
    """

    panel: "Image.Image"
    low: Tensor
    high: Tensor
    basis: PCABasis


def pca_picture(
    pipe: "Pipeline",
    image: "ImageSource | Encoded",
    *,
    basis: PCABasis | None = None,
    output_size: "SizeRequest" = None,
    max_side: int = 768,
) -> PCAPicture:
    """Make the PCA panel of one image, without holding its high-resolution features.

    Args:
        pipe: backbone and upsampler.
        image: anything that the pipeline reads, or what ``pipe.encode`` made of one image.
        basis: of a folder or a video; None fits one to this image's low-resolution features.
        output_size: overrides the pipeline's.
        max_side: longer side of each picture of the panel, in pixels.
    """
    from upfeat.pipeline import Encoded

    encoded = image if isinstance(image, Encoded) else pipe.encode(image)
    if isinstance(encoded, list) or not encoded.single:
        raise ValueError("pca_picture draws one image; call it in a loop, with one basis for all")
    basis = basis or PCABasis.fit(encoded.low)
    low = basis.colors(basis.project(encoded.low)).cpu()
    high = basis.colors(pipe.upsample(encoded, output_size, head=basis.project)).cpu()
    picture = encoded.image[0].cpu()
    panel = pca_panel(
        picture,
        low,
        high,
        low_extent=encoded.low_extent,
        captions=(
            f"image  {_size_text(picture)}",
            f"{pipe.backbone.name.rsplit('/', 1)[-1]}  {_size_text(low)}",
            f"{pipe.upsampler.info.name}  {_size_text(high)}",
        ),
        max_side=max_side,
    )
    return PCAPicture(panel, low, high, basis)


def save_png(picture: "Image.Image | Tensor", path: str | os.PathLike[str]) -> None:
    """Write a PIL image or a (3, H, W) uint8 tensor as PNG, whole or not at all."""
    write_bytes(path, png_bytes(picture))


def png_bytes(picture: "Image.Image | Tensor") -> bytes:
    """Return the PNG of a PIL image or a (3, H, W) uint8 tensor."""
    stream = io.BytesIO()
    (to_pil(picture) if isinstance(picture, Tensor) else picture).save(stream, "PNG")
    return stream.getvalue()
