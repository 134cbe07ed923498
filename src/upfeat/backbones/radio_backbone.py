"""RADIO and C-RADIO: ``radio/<version>``, from a file of weights or from the authors' code.

Papers: M. Ranzinger et al., "AM-RADIO: Agglomerative Vision Foundation Model", arXiv 2312.06709;
G. Heinrich et al., "RADIOv2.5", arXiv 2412.07679. Code: github.com/NVlabs/RADIO; the licences of
code and weights differ by version.

The network here is a plain vision transformer with one class token a teacher and registers, all of
which are dropped, and a large position table from which each image takes its part (CPE).

Legend: ``B`` batch, ``D`` width, ``H W`` image, ``h w`` feature grid, ``p`` patch.
"""

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upfeat._compat import ensure_torchvision_operators
from upfeat._settings import call_text
from upfeat.backbones.base import IMAGENET, OPENAI_CLIP, Backbone, register_provider
from upfeat.backbones.positions import resize_positions
from upfeat.checkpoints import (
    find_weights,
    inert_globals,
    load_strictly,
    read_checkpoint,
    unwrap_state,
)
from upfeat.errors import (
    CheckpointError,
    UnknownNameError,
    UnsupportedError,
    check_choice,
    shape_text,
)

__all__ = ["LanguageAdaptor", "RadioBackbone", "RadioNetwork"]

# Width, blocks, heads. The giant of version 2.5 is a network of another kind.
VERSIONS: dict[str, tuple[int, int, int]] = {
    "radio_v2.5-b": (768, 12, 12),
    "radio_v2.5-l": (1024, 24, 16),
    "radio_v2.5-h": (1280, 32, 16),
    "c-radio_v3-b": (768, 12, 12),
    "c-radio_v3-l": (1024, 24, 16),
    "c-radio_v3-h": (1280, 32, 16),
    "c-radio_v4-so400m": (1152, 27, 16),
    "c-radio_v4-h": (1280, 32, 16),
}
ONLY_BY_CODE = ("radio_v2.5-g",)
NORMALIZATIONS = {"clip": OPENAI_CLIP, "imagenet": IMAGENET}
_PREFIXES = ("radio_model.model.", "base_model.", "model.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class RadioNetwork(nn.Module):
    """RADIO's transformer, with the names of its files.

    Args:
        dim: D.
        depth: blocks.
        heads: of the attention.
        hidden: width of the MLPs; None for 4 D.
        patch: p.
        side: of the position table.
        prefix: class tokens and registers.
        norm: a final norm, which only some files have.
        bias: of the patch embedding.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        patch: int = 16,
        side: int = 128,
        prefix: int = 8,
        norm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        ensure_torchvision_operators()
        from timm.models.vision_transformer import Block

        self.dim, self.patch, self.prefix, self.align_corners = dim, patch, prefix, False
        self.patch_generator = nn.Module()
        self.patch_generator.embedder = nn.Linear(3 * patch**2, dim, bias=bias)
        table = nn.Parameter(torch.randn(1, side**2, dim) * dim**-0.5)
        self.patch_generator.register_parameter("pos_embed", table)
        self.patch_generator.cls_token = nn.Module()
        token = nn.Parameter(torch.randn(prefix, dim) * dim**-0.5)
        self.patch_generator.cls_token.register_parameter("token", token)
        layer_norm: Any = functools.partial(nn.LayerNorm, eps=1e-6)
        ratio = (hidden or 4 * dim) / dim
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=layer_norm)
                for _ in range(depth)
            )
        )
        self.norm = layer_norm(dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Compute all tokens (B, prefix + h*w, D) of an image (B, 3, H, W)."""
        generator: Any = self.patch_generator
        p = self.patch
        grid = (image.shape[-2] // p, image.shape[-1] // p)
        # A linear map of each patch's values, in the order (3, p, p), is a convolution.
        weight = generator.embedder.weight.reshape(-1, 3, p, p)
        cells = nn.functional.conv2d(image, weight, generator.embedder.bias, stride=p)
        rule: Literal["cpe", "cpe-corners"] = "cpe-corners" if self.align_corners else "cpe"
        cells = cells.flatten(2).mT + resize_positions(generator.pos_embed, grid, rule, prefix=0)
        first = generator.cls_token.token.expand(len(cells), -1, -1)
        tokens: Tensor = self.norm(self.blocks(torch.cat([first, cells], dim=1)))
        return tokens


class LanguageAdaptor(nn.Module):
    """The head that brings RADIO's features into a teacher's text space, with the text encoder.

    Args:
        adaptor: of the authors' code, with ``head_mlp``, ``tokenizer`` and ``encode_text``.
        name: how messages and reports call it.
    """

    def __init__(self, adaptor: nn.Module, name: str) -> None:
        super().__init__()
        self.adaptor, self.name = adaptor, name

    def forward(self, features: Tensor) -> Tensor:
        """Apply the head for summaries to each cell.

        Args:
            features: (B, D, h, w).

        Returns:
            (B, C, h, w)
        """
        parts: Any = self.adaptor
        # (B, D, h, w) -> (B, h*w, D) -> (B, h*w, C) -> (B, C, h, w)
        tokens: Tensor = parts.head_mlp(features.flatten(2).mT)
        return tokens.mT.unflatten(2, features.shape[2:])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode T texts as (T, C), not normalised."""
        parts: Any = self.adaptor
        tokens = parts.tokenizer(list(texts))
        encoded: Tensor = parts.encode_text(tokens.to(next(parts.parameters()).device))
        return encoded


class RadioBackbone(Backbone):
    """RADIO, frozen; :func:`upfeat.create_backbone` makes it.

    Args:
        network: a :class:`RadioNetwork`, or the authors' model with its conditioner taken out.
        name: how messages and reports call it.
        dim: D.
        patch_size: p.
        image_norm: normalisation of the image: ``"clip"`` is RADIO's own, ``"imagenet"`` what
            LoftUp fed it with.
        language: head and text encoder of one of its teachers; None for none.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        dim: int,
        patch_size: int,
        image_norm: Literal["clip", "imagenet"] = "clip",
        language: LanguageAdaptor | None = None,
    ) -> None:
        check_choice("image_norm", image_norm, tuple(NORMALIZATIONS))
        mean, std = NORMALIZATIONS[image_norm]
        super().__init__(name=name, dim=dim, patch_size=patch_size, image_mean=mean, image_std=std)
        self.model, self.language = network, language
        self.freeze()

    @property
    def last_attention(self) -> nn.Module:
        """The attention of the last block, one of timm."""
        network: Any = self.model if isinstance(self.model, RadioNetwork) else self.model.model
        attention: nn.Module = network.blocks[-1].attn
        return attention

    def _extract(self, image: Tensor) -> Tensor:
        grid = self.grid_size(tuple(image.shape[-2:]))
        if isinstance(self.model, RadioNetwork):
            tokens = self.model(image)[:, self.model.prefix :]
        else:
            tokens = _features(self.model, image, self.name)
        # (B, h*w, D) -> (B, D, h, w)
        return tokens.mT.reshape(len(image), -1, *grid)


def _features(model: nn.Module, image: Tensor, name: str) -> Tensor:
    """Return the patch tokens (B, h*w, D) of the authors' model, which gives a summary, too."""
    output = model(image)
    if isinstance(output, Mapping):  # with adaptors
        output = output["backbone"]
    if not isinstance(output, tuple) or len(output) != 2:
        raise UnsupportedError(f"{name} returned {type(output).__name__}, not summary and features")
    features: Tensor = output[1]
    return features


@register_provider("radio", names=lambda pretrained: [*VERSIONS, *ONLY_BY_CODE])
def create_radio_backbone(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    layer: int = -1,
    repository: str | os.PathLike[str] | None = None,
    image_norm: Literal["clip", "imagenet"] = "clip",
    align_corners: bool = False,
    adaptor: str | None = None,
    network: Mapping[str, Any] | None = None,
) -> RadioBackbone:
    """Build ``radio/<version>``; called through :func:`upfeat.create_backbone`.

    Args:
        name: a version, such as ``radio_v2.5-b`` or ``c-radio_v3-l``.
        weights: a file in the names of NVIDIA's; None for the lookup (with ``repository``: what its
            code loads); a folder is taken for ``repository``; ``"random"``.
        layer: -1; features come out of the last block.
        repository: folder of the authors' code, whose ``hubconf.py`` is run in place of the network
            here.
        image_norm: as in :class:`RadioBackbone`.
        align_corners: how positions are resized: False as the code does since June 2025, True as
            before, when LoftUp and JAFAR trained on RADIO.
        adaptor: of the authors' code, such as ``"siglip2"``: the backbone gets its head and text
            encoder as ``language``; features stay RADIO's own. Needs ``repository``.
        network: changes of :class:`RadioNetwork`'s arguments for ``weights="random"``.
    """
    if layer != -1:
        raise ValueError(f"radio/{name} gives its last block only, layer=-1, got {layer!r}")
    if name not in VERSIONS and name not in ONLY_BY_CODE:
        known = [f"radio/{version}" for version in (*VERSIONS, *ONLY_BY_CODE)]
        raise UnknownNameError("backbone", f"radio/{name}", known)
    if repository is None and weights not in (None, "random") and Path(weights).is_dir():
        repository, weights = weights, None
    changed = {"image_norm": image_norm, "align_corners": align_corners, "adaptor": adaptor}
    usual = {"image_norm": "clip", "align_corners": False, "adaptor": None}
    full = call_text(f"radio/{name}", {k: v for k, v in changed.items() if v != usual[k]})
    if repository is not None:
        if align_corners:
            raise ValueError("align_corners is the repository's own matter; check out its version")
        return _by_code(Path(repository), name, weights, full, image_norm, adaptor)
    if adaptor is not None:
        raise UnsupportedError(
            f"adaptor={adaptor!r} of radio/{name} is built by the authors' code; give its folder: "
            "repository=FOLDER"
        )
    if name in ONLY_BY_CODE:
        raise UnsupportedError(
            f"radio/{name} is a network of another kind; give the folder of the authors' code: "
            "repository=FOLDER"
        )
    dim, depth, heads = VERSIONS[name]
    if weights == "random":
        sizes: dict[str, Any] = {"dim": dim, "depth": depth, "heads": heads, **(network or {})}
        model = RadioNetwork(**sizes)
    else:
        path = find_weights(f"radio/{name}", [name], file=weights)
        model = _from_file(path, name, heads)
    model.align_corners = align_corners
    return RadioBackbone(
        model, name=full, dim=model.dim, patch_size=model.patch, image_norm=image_norm
    )


def _from_file(path: Path, name: str, heads: int) -> RadioNetwork:
    """Build the network of a file's sizes and load it."""
    content = read_checkpoint(path, allowed_globals=inert_globals(["argparse.Namespace"]))
    state = _own_names(unwrap_state(content, ["state_dict"]))
    needed = ("embedder.weight", "pos_embed", "cls_token.token")
    missing = [key for key in needed if f"patch_generator.{key}" not in state]
    if missing or not any(_BLOCK.match(key) for key in state):
        raise CheckpointError(
            f"{path} holds no RADIO: patch_generator.{' and '.join(missing or ['blocks'])} is "
            "missing; use the model file of the version, in NVIDIA's names"
        )
    embedder, table = state["patch_generator.embedder.weight"], state["patch_generator.pos_embed"]
    depth = 1 + max(int(match[1]) for key in state if (match := _BLOCK.match(key)))
    side, patch = math.isqrt(table.shape[1]), math.isqrt(embedder.shape[1] // 3)
    if side**2 != table.shape[1] or 3 * patch**2 != embedder.shape[1]:
        raise CheckpointError(
            f"{path}: a square position table and square patches expected, got "
            f"{shape_text(table)} and {shape_text(embedder)}"
        )
    model = RadioNetwork(
        dim=embedder.shape[0],
        depth=depth,
        heads=heads,
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        side=side,
        prefix=state["patch_generator.cls_token.token"].shape[0],
        norm="norm.weight" in state,
        bias="patch_generator.embedder.bias" in state,
    )
    load_strictly(model, state, origin=str(path), name=f"radio/{name}")
    return model


def _own_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the transformer out of a file: adaptors, conditioner and summary indices stay."""
    for prefix in _PREFIXES:
        if any(key.startswith(f"{prefix}patch_generator.") for key in state):
            state = {
                key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)
            }
            break
    parts = ("patch_generator.", "blocks.", "norm.")
    return {key: value for key, value in state.items() if key.startswith(parts)}


def _by_code(
    folder: Path,
    version: str,
    weights: str | os.PathLike[str] | None,
    name: str,
    image_norm: Literal["clip", "imagenet"],
    adaptor: str | None,
) -> RadioBackbone:
    """Build the model with the authors' code, which also finds or downloads its weights."""
    if not (folder / "hubconf.py").is_file():
        raise FileNotFoundError(
            f"no hubconf.py in {folder}; give the folder of a copy of github.com/NVlabs/RADIO"
        )
    chosen = version if weights is None else os.fspath(weights)
    wanted: dict[str, Any] = {} if adaptor is None else {"adaptor_names": [adaptor]}
    model: Any = torch.hub.load(
        str(folder), "radio_model", source="local", version=chosen, progress=False, **wanted
    )
    language = None
    if adaptor is not None:
        language = LanguageAdaptor(model.adaptors[adaptor], f"{adaptor} of radio/{version}")
        model.adaptors = None  # or each call computes its outputs, too
    model.make_preprocessor_external()  # the backbone's mean and std take its place
    patch = int(model.patch_size)
    with torch.no_grad():
        dim = _features(model.eval(), torch.zeros(1, 3, 2 * patch, 2 * patch), name).shape[-1]
    return RadioBackbone(
        model, name=name, dim=dim, patch_size=patch, image_norm=image_norm, language=language
    )
