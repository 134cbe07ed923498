"""CLIP with its text space: ``clip/<name of open_clip>`` or ``clip/<name>.<tag>``.

Networks: open_clip (package ``open_clip_torch``, MIT), extra ``[clip]``; weights have licences of
their own. Paper: A. Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", arXiv 2103.00020.

Patch tokens get into the text space as in MaskCLIP (C. Zhou et al., "Extract Free Dense Labels from
CLIP", arXiv 2112.01071): the last block gives its values instead of its attention, then the final
norm and the image projection follow.

Legend: ``B`` batch, ``N`` tokens (class token first), ``D`` width of the network, ``C`` channels of
the text space, ``H W`` image, ``h w`` feature grid, ``T`` texts.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from upfeat._settings import call_text
from upfeat.backbones.base import IMAGENET, OPENAI_CLIP, Backbone, register_provider
from upfeat.backbones.positions import PositionRule, resize_positions
from upfeat.checkpoints import HubFile, find_weights, load_strictly, read_checkpoint, unwrap_state
from upfeat.errors import (
    MissingPackageError,
    UnknownNameError,
    UnsupportedError,
    check_choice,
    import_optional,
)

__all__ = ["ClipBackbone", "LastBlock", "list_clip_names", "value_tokens"]

LastBlock = Literal["value", "value-mlp", "attention"]
OPENAI = "openai"
NORMALIZATIONS = {"openai": OPENAI_CLIP, "imagenet": IMAGENET}
# In files of OpenAI's network beside the weights.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def value_tokens(block: nn.Module, tokens: Tensor, *, mlp: bool = False) -> Tensor:
    """Compute the values of a block of open_clip instead of its attention.

    Args:
        block: with ``ln_1``, ``attn``, ``ln_2`` and ``mlp``.
        tokens: (B, N, D), what enters the block.
        mlp: False for the values behind the output projection alone (FeatUp, LoftUp); True adds
            the block's residual path and MLP, as the original MaskCLIP does.

    Returns:
        (B, N, D)
    """
    parts: Any = block
    attention: nn.MultiheadAttention = parts.attn
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    width = tokens.shape[-1]
    values = nn.functional.linear(parts.ln_1(tokens), weight[2 * width :], bias[2 * width :])
    values = attention.out_proj(values)
    if not mlp:
        return values
    tokens = tokens + parts.ls_1(values)
    mixed: Tensor = tokens + parts.ls_2(parts.mlp(parts.ln_2(tokens)))
    return mixed


class ClipBackbone(Backbone):
    """A CLIP of open_clip whose image tower is a plain transformer, frozen.

    Args:
        model: ``open_clip.CLIP`` or ``CustomTextCLIP``; frozen in place.
        name: how messages and reports call it.
        tokenize: texts to token ids (T, length); None where no text will be encoded.
        last_block: what the last block gives: ``"value"`` its values (FeatUp, LoftUp),
            ``"value-mlp"`` the same with residual path and MLP (MaskCLIP), ``"attention"`` what it
            was trained to give (FeatUp's ``clip``).
        project: multiply by the image projection, into the text space of C = ``dim`` channels;
            without it the final norm's D channels.
        positions: rule for other grids, see :func:`upfeat.backbones.positions.resize_positions`.
        image_mean, image_std: normalisation of the image.

    Raises:
        UnsupportedError: the image tower is no plain transformer of open_clip.
        ValueError: no such ``last_block`` or ``positions``.

    Example:
        >>> import torch, upfeat
        >>> tower = dict(layers=2, width=64)
        >>> clip = upfeat.create_backbone(
        ...     "clip/ViT-B-16.openai",
        ...     weights="random",
        ...     vision=tower,
        ...     text=dict(layers=1, width=64),
        ... )
        >>> clip(torch.randn(1, 3, 32, 48)).shape
        torch.Size([1, 512, 2, 3])
        >>> clip.encode_text(["a cat", "a dog"]).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        tokenize: Callable[[list[str]], Tensor] | None = None,
        last_block: LastBlock = "value",
        project: bool = True,
        positions: PositionRule = "offset",
        image_mean: Sequence[float] = OPENAI_CLIP[0],
        image_std: Sequence[float] = OPENAI_CLIP[1],
    ) -> None:
        check_choice("last_block", last_block, get_args(LastBlock))
        check_choice("positions", positions, get_args(PositionRule))
        tower: Any = getattr(model, "visual", None)
        plain = hasattr(tower, "transformer") and getattr(tower, "attn_pool", None) is None
        if not plain or not hasattr(tower.transformer.resblocks[-1], "ln_1"):
            raise UnsupportedError(
                f"the image tower of {name} ({type(tower).__name__}) is no plain transformer of "
                "open_clip with a class token; towers of timm are backbones timm/NAME"
            )
        if not isinstance(tower.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            raise UnsupportedError(f"{name} has attention of another kind than CLIP's in its tower")
        patch, width = tower.conv1.kernel_size[0], tower.conv1.out_channels
        super().__init__(
            name=name,
            dim=int(tower.proj.shape[1]) if project else width,
            patch_size=patch,
            image_mean=image_mean,
            image_std=image_std,
        )
        self.model = model
        self.tokenize = tokenize
        self.last_block, self.project, self.positions = last_block, project, positions
        self.freeze()

    @property
    def tower(self) -> Any:
        """The image tower."""
        return self.model.visual

    def penultimate(self, image: Tensor) -> Tensor:
        """Compute what enters the last block, (B, 1 + h*w, D), class token first."""
        tower, grid = self.tower, self.grid_size(tuple(image.shape[-2:]))
        cells = tower.conv1(image.to(tower.conv1.weight.dtype)).flatten(2).mT  # (B, h*w, D)
        table = resize_positions(tower.positional_embedding[None], grid, self.positions)
        first = tower.class_embedding.expand(len(cells), 1, -1)
        tokens = tower.ln_pre(torch.cat([first, cells], dim=1) + table)
        for block in tower.transformer.resblocks[:-1]:
            tokens = block(tokens)
        return tokens

    def last_keys(self, image: Tensor) -> Tensor:
        """Compute the keys of the last block, (B, h*w, D)."""
        return self._projected(image, 1)

    def last_values(self, image: Tensor) -> Tensor:
        """Compute the values of the last block, before its output projection, (B, D, h, w).

        Sides of the image that are no multiples of the patch are cut.
        """
        values = self._projected(image, 2)
        # (B, h*w, D) -> (B, D, h, w)
        return values.mT.unflatten(2, self.grid_size(tuple(image.shape[-2:])))

    def _projected(self, image: Tensor, part: int) -> Tensor:
        """Compute queries, keys or values (0, 1, 2) of the last block as (B, h*w, D)."""
        block = self.tower.transformer.resblocks[-1]
        joint = (block.attn.in_proj_weight, block.attn.in_proj_bias)
        weight, bias = (tensor.chunk(3)[part] for tensor in joint)
        return nn.functional.linear(block.ln_1(self.penultimate(image))[:, 1:], weight, bias)

    def into_text_space(self, values: Tensor) -> Tensor:
        """Bring mixed values of the last block into the text space.

        Args:
            values: (B, D, h, w), such as :meth:`last_values` behind an attention of one's own.

        Returns:
            (B, C, h, w): output projection, final norm, image projection.
        """
        tokens = self.tower.transformer.resblocks[-1].attn.out_proj(values.flatten(2).mT)
        return self.finish(tokens).mT.unflatten(2, values.shape[2:])

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and, if it is to, the projection: (B, N, D) to (B, N, C)."""
        tokens = self.tower.ln_post(tokens)
        return tokens @ self.tower.proj if self.project else tokens

    def _extract(self, image: Tensor) -> Tensor:
        grid = self.grid_size(tuple(image.shape[-2:]))
        tokens = self.penultimate(image)
        block = self.tower.transformer.resblocks[-1]
        if self.last_block == "attention":
            tokens = block(tokens)
        else:
            tokens = value_tokens(block, tokens, mlp=self.last_block == "value-mlp")
        # (B, 1 + h*w, C) -> (B, C, h, w)
        return self.finish(tokens)[:, 1:].mT.reshape(len(tokens), self.dim, *grid)

    def _class_token(self, image: Tensor) -> Tensor:
        tokens = self.tower.transformer.resblocks[-1](self.penultimate(image))
        return self.finish(tokens[:, :1])[:, 0]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Encode T texts as (T, C), not normalised; what is longer than the context is cut.

        Raises:
            ValueError: a text is empty, or the backbone was made without a tokenizer.
        """
        if self.tokenize is None:
            raise ValueError(f"{self.name} was made without a tokenizer; give it tokenize=")
        if empty := [number for number, text in enumerate(texts) if not text.strip()]:
            raise ValueError(
                f"text {empty[0] + 1} of {len(texts)} is empty; every text needs words"
            )
        ids = self.tokenize(list(texts)).to(self.tower.conv1.weight.device)
        return self.encode_tokens(ids)

    @torch.no_grad()
    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Encode token ids (T, length), the largest of each row being its end, as (T, C)."""
        model: Any = self.model
        encoded: Tensor = model.encode_text(ids)
        return encoded


# -- building --------------------------------------------------------------------------------------


def _open_clip() -> Any:
    from upfeat._compat import ensure_torchvision_operators

    ensure_torchvision_operators()
    return import_optional("open_clip", "open_clip_torch", "clip", "backbones clip/NAME")


def list_clip_names(pretrained: bool = False) -> list[str]:
    """Return the names of open_clip that can be built; of those with weights with their tags."""
    try:
        open_clip = _open_clip()
    except MissingPackageError:
        return []
    names = [name for name in open_clip.list_models() if _obstacle(open_clip, name) is None]
    if not pretrained:
        return names
    tags = {name: open_clip.list_pretrained_tags_by_model(name) for name in names}
    return [f"{name}.{tag}" for name in names for tag in tags[name]]


def _obstacle(open_clip: Any, name: str) -> str | None:
    """Return why a network of open_clip cannot be built here, or None."""
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "multimodal_cfg" in config or vision.get("attentional_pool"):
        return "it pools its tokens by attention"
    if vision.get("timm_model_name"):
        return f"its image tower is timm/{vision['timm_model_name']}, a backbone of its own"
    if isinstance(vision.get("layers"), list):
        return "its image tower is a convolutional network"
    if text.get("hf_model_name"):
        return f"its text tower is {text['hf_model_name']} of transformers"
    return None


@register_provider("clip", names=list_clip_names)
def create_clip_backbone(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    layer: int = -1,
    last_block: LastBlock = "value",
    project: bool = True,
    positions: PositionRule = "offset",
    image_norm: Literal["openai", "imagenet"] | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> ClipBackbone:
    """Build ``clip/<name>``; called through :func:`upfeat.create_backbone`.

    ``name`` is one of open_clip, with a tag of its weights or without: ``ViT-B-16.openai``. Weights
    of OpenAI and of tags that open_clip marks get QuickGELU whatever the name says. A file of
    weights has open_clip's or OpenAI's names. Features come out of the last block only; how is
    what ``last_block``, ``project`` and ``positions`` say, as in :class:`ClipBackbone`.
    ``image_norm`` is the normalisation of the image: None for that of the weights, ``"imagenet"``
    for what FeatUp and LoftUp fed their CLIP with. ``vision`` and ``text`` change open_clip's
    configuration of the towers, such as ``{"layers": 2}``.
    """
    if layer != -1:
        raise ValueError(f"clip/{name} gives its last block only, layer=-1, got {layer!r}")
    open_clip = _open_clip()
    architecture, _, tag = name.partition(".")
    if architecture not in open_clip.list_models():
        raise UnknownNameError(
            "backbone", f"clip/{name}", [f"clip/{n}" for n in open_clip.list_models()]
        )
    if reason := _obstacle(open_clip, architecture):
        raise UnsupportedError(f"clip/{architecture} cannot be built: {reason}")
    facts = _weights_facts(open_clip, architecture, tag)
    if image_norm is not None:
        check_choice("image_norm", image_norm, tuple(NORMALIZATIONS))
        facts["mean"], facts["std"] = NORMALIZATIONS[image_norm]
    model = _build(open_clip, architecture, facts.get("quick_gelu", False), vision, text)
    if weights != "random":
        _load(model, architecture, tag, weights, facts)
    options = {"last_block": last_block, "project": project, "positions": positions}
    usual = {"last_block": "value", "project": True, "positions": "offset", "image_norm": None}
    changed = options | {"image_norm": image_norm}
    written = {key: value for key, value in changed.items() if value != usual[key]}
    length = getattr(model, "context_length", None)
    tokenizer = open_clip.get_tokenizer(architecture, context_length=length)
    return ClipBackbone(
        model,
        name=call_text(f"clip/{name}", written),
        tokenize=tokenizer,
        last_block=last_block,
        project=project,
        positions=positions,
        image_mean=facts["mean"],
        image_std=facts["std"],
    )


def _weights_facts(open_clip: Any, architecture: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of a tag: addresses, normalisation, whether it is QuickGELU."""
    mean, std = NORMALIZATIONS["openai"]
    if not tag:
        return {"mean": mean, "std": std}
    base = architecture.removesuffix("-quickgelu")
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in known and tag not in open_clip.list_pretrained_tags_by_model(base):
        raise UnknownNameError(
            "backbone", f"clip/{architecture}.{tag}", [f"clip/{architecture}.{t}" for t in known]
        )
    owner = architecture if tag in known else base
    facts = dict(open_clip.pretrained.get_pretrained_cfg(owner, tag))
    facts["quick_gelu"] = bool(facts.get("quick_gelu")) or tag == OPENAI
    return facts


def _build(
    open_clip: Any,
    architecture: str,
    quick_gelu: bool,
    vision: Mapping[str, Any] | None,
    text: Mapping[str, Any] | None,
) -> nn.Module:
    config = open_clip.get_model_config(architecture)
    own = config.pop("custom_text", False)
    config["vision_cfg"] = {**config["vision_cfg"], **(vision or {})}
    config["text_cfg"] = {**config["text_cfg"], **(text or {})}
    config["quick_gelu"] = quick_gelu or config.get("quick_gelu", False)
    kind = open_clip.CustomTextCLIP if own else open_clip.CLIP
    model: nn.Module = kind(**config)
    return model


def _load(
    model: nn.Module,
    architecture: str,
    tag: str,
    file: str | os.PathLike[str] | None,
    facts: Mapping[str, Any],
) -> None:
    full = f"{architecture}.{tag}" if tag else architecture
    hub = None
    repository, _, filename = str(facts.get("hf_hub") or "").rpartition("/")
    if repository:
        hub = HubFile(filename=filename or "open_clip_model.safetensors", repository=repository)
    path = find_weights(f"clip/{full}", [full], file=file, hub=hub)
    state = dict(unwrap_state(read_checkpoint(path)))
    state = {key: value for key, value in state.items() if key not in _NO_WEIGHTS}
    load_strictly(
        model,
        state,
        origin=str(path),
        name=f"clip/{full}",
        advice="Use the file of this network, in open_clip's or OpenAI's names",
    )
