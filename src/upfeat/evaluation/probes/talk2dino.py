"""Talk2DINO: words of CLIP, brought among DINOv2's features.

L. Barsellotti et al., "Talking to DINO", arXiv 2411.19331; code: lorebianchi98/Talk2DINO, 4918c2d.

Legend: ``W`` words, ``T`` templates, ``C`` channels of CLIP's text space, ``D`` of the features,
``B`` batch, ``h w`` grid.
"""

import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.checkpoints import load_strictly, read_checkpoint
from upfeat.errors import CheckpointError, shape_text
from upfeat.ops import unit_vectors
from upfeat.similarity.maps import cosine_maps

_HIDDEN = re.compile(r"hidden_layers\.(\d+)\.weight")


class TextProjection(nn.Module):
    """A linear layer, then others of the features' width, each behind a tanh.

    Args:
        text_dim: C.
        dim: D.
        hidden: layers behind the first; the released weights have one.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.talk2dino import TextProjection
        >>> TextProjection(512, 768)(torch.randn(3, 7, 512)).shape
        torch.Size([3, 768])
    """

    def __init__(self, text_dim: int, dim: int, hidden: int = 1) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(text_dim, dim)
        self.hidden_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(hidden))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project each word's mean embedding.

        Args:
            embeddings: (W, T, C), as the text encoder gives them, not normalised.

        Returns:
            (W, D) of unit length.
        """
        projected = self.linear_layer(embeddings.mean(1).to(self.linear_layer.weight))
        for layer in self.hidden_layers:
            projected = layer(torch.tanh(projected))
        return unit_vectors(projected, dim=1)


class ProjectedText(nn.Module):
    """CLIP's text encoder and the projection behind it.

    Args:
        clip: whose text encoder it is.
        projection: of its embeddings.
    """

    def __init__(self, clip: ClipBackbone, projection: TextProjection) -> None:
        super().__init__()
        self.clip, self.projection = clip, projection
        self.name = f"{clip.name}, projected"

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode T texts as (T, C), not yet projected."""
        return self.clip.encode_text(texts)


def read_text_projection(path: str | os.PathLike[str]) -> TextProjection:
    """Read the weights of Talk2DINO's repository.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it holds no such projection.
    """
    content = read_checkpoint(path)
    state = {
        str(key).replace("linear_layer2.", "hidden_layers.0."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    first = state.get("linear_layer.weight")
    if first is None or first.dim() != 2:
        got = "nothing" if first is None else shape_text(first)
        raise CheckpointError(
            f"{path} holds no projection of Talk2DINO: linear_layer.weight must be a matrix, got "
            f"{got}; use a file such as vitb_mlp_infonce.pth"
        )
    depth = sum(1 for key in state if _HIDDEN.fullmatch(key))
    projection = TextProjection(first.shape[1], first.shape[0], depth)
    kept = {key: value for key, value in state.items() if key.startswith(("linear", "hidden"))}
    load_strictly(projection, kept, origin=str(path), name="Talk2DINO's projection")
    return projection.requires_grad_(False).eval()


def word_masks(features: Tensor, text: Tensor) -> Tensor:
    """Compute how well each cell fits each word: the sigmoid of the cosine.

    Args:
        features: (B, D, h, w).
        text: (W, D) of unit length.

    Returns:
        (B, W, h, w) in (0.26, 0.74).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.talk2dino import word_masks
        >>> word_masks(torch.ones(1, 1, 1, 1), torch.ones(1, 1)).item()
        0.7310585975646973
    """
    return cosine_maps(features, text).sigmoid()
