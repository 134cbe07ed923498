"""The networks that are exported: tensors in, tensors out, every normalisation inside or named.

Legend: B batch (1), C feature channels, K value channels, h w grid, H W image and output.
"""

import torch
from torch import Tensor, nn

from upfeat.backbones.base import Backbone
from upfeat.ops.images import normalize
from upfeat.upsamplers.base import Upsampler

__all__ = ["BackboneGraph", "PipelineGraph", "UpsamplerGraph", "ValuesGraph"]


class UpsamplerGraph(nn.Module):
    """An upsampler alone: the normalised guidance and the features to the output.

    Args:
        upsampler: in eval mode.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.export import UpsamplerGraph
        >>> graph = UpsamplerGraph(upfeat.create_upsampler("bilinear"))
        >>> graph(torch.rand(1, 3, 32, 48), torch.rand(1, 8, 4, 6)).shape
        torch.Size([1, 8, 32, 48])
    """

    def __init__(self, upsampler: Upsampler) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """(1, 3, H, W), normalised, and (1, C, h, w) to (1, C, H, W)."""
        output: Tensor = self.upsampler(image, features)
        return output


class ValuesGraph(UpsamplerGraph):
    """An upsampler with a third input: what it mixes, such as a head's logits or PCA colours.

    Args:
        upsampler: whose ``info.abilities.mixes_values``.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.export import ValuesGraph
        >>> graph = ValuesGraph(upfeat.create_upsampler("bilinear"))
        >>> shapes = (1, 3, 32, 48), (1, 8, 4, 6), (1, 2, 4, 6)
        >>> graph(*map(torch.rand, shapes)).shape
        torch.Size([1, 2, 32, 48])
    """

    def forward(self, image: Tensor, features: Tensor, values: Tensor) -> Tensor:  # type: ignore[override]
        """Also (1, K, h, w), to (1, K, H, W)."""
        output: Tensor = self.upsampler(image, features, values=values)
        return output


class BackboneGraph(nn.Module):
    """A backbone with its normalisation: an image in [0, 1], or 8 bit, to its features.

    Args:
        backbone: any.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.export import BackboneGraph
        >>> graph = BackboneGraph(upfeat.create_backbone("upfeat/vit_compact_patch16"))
        >>> graph(torch.zeros(1, 3, 32, 48, dtype=torch.uint8)).shape
        torch.Size([1, 192, 2, 3])
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, C, h, w)."""
        return self._features(self._in_range(image))

    def _in_range(self, image: Tensor) -> Tensor:
        """The image in [0, 1] and in the type of the weights."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        return image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)

    def _features(self, image: Tensor) -> Tensor:
        backbone = self.backbone
        features: Tensor = backbone(normalize(image, backbone.image_mean, backbone.image_std))
        return features


class PipelineGraph(BackboneGraph):
    """Backbone, upsampler and both normalisations: an image to features of its own size.

    Args:
        backbone: any.
        upsampler: of the backbone's width.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.export import PipelineGraph
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> graph = PipelineGraph(backbone, upfeat.load_upsampler("kin.upfeat", backbone))
        >>> graph(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 192, 32, 48])
    """

    def __init__(self, backbone: Backbone, upsampler: Upsampler) -> None:
        super().__init__(backbone)
        self.upsampler = upsampler
        self.statistics = upsampler.guidance_statistics(backbone)

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, C, H, W)."""
        image = self._in_range(image)
        guidance = normalize(image, *self.statistics)
        output: Tensor = self.upsampler(guidance, self._features(image))
        return output
