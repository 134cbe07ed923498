"""Every network of timm as a backbone: ``timm/<name>`` or ``timm/<name>.<tag>``.

Source of the networks and weights: R. Wightman, "PyTorch Image Models", Apache-2.0; each published
weight file has its own licence, stated on its page.

Features come from the network's ``forward_intermediates``: prefix tokens (class, registers)
dropped, positions resized to the grid, NCHW. For a plain transformer the final norm is applied to
the chosen layer, whichever it is; for a hierarchical network timm applies it to the last stage,
where it has one.

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid.
"""

import difflib
import inspect
import os
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from upfeat._compat import ensure_torchvision_operators
from upfeat._settings import call_text
from upfeat.backbones.base import Backbone, register_provider
from upfeat.backbones.positions import PositionRule, resize_positions
from upfeat.errors import UnknownNameError, UnsupportedError, check_choice, check_size, shape_text

__all__ = ["Facet", "TimmBackbone", "list_timm_names"]

Facet = Literal["tokens", "keys", "queries", "values"]

# Networks whose final norm belongs to the pooled vector, so that timm refuses it for maps.
_POOLED_NORM = ("Hiera", "HieraDet")


class TimmBackbone(Backbone):
    """A network of timm, or one built like them, as a frozen backbone.

    Args:
        model: the network; it needs timm's ``forward_intermediates`` and ``feature_info``. It is
            frozen in place.
        name: how messages and reports call it.
        image_mean, image_std: normalisation of the image.
        layer: which layer's output is returned: a block of a plain transformer, a stage of a
            hierarchical or convolutional network; negative numbers count from the last.
        norm: apply the network's final norm, as timm does it.
        layers: several layers of one grid in place of ``layer``; their channels come one layer
            after the other, so that ``features.chunk(len(layers), 1)`` are theirs.
        facet: ``"tokens"`` for the layer's output; ``"keys"``, ``"queries"`` or ``"values"`` of its
            attention, without a final norm (S. Amir et al., "Deep ViT Features as Dense Visual
            Descriptors", arXiv 2112.05814).
        head_fastest: order of a facet's channels: False for head * head_dim + d, True for
            d * heads + head, which LiFT's weights want.
        positions: rule of the position table at other grids, see
            :func:`upfeat.backbones.positions.resize_positions`; None for timm's own.
        fixed_size: the only image size (H, W) that the network takes, or None.

    Raises:
        UnsupportedError: the network has no ``forward_intermediates``, or no facets or position
            table to be treated so.
        ValueError: no such layer; the message lists the valid ones.

    Example:
        >>> import torch
        >>> from upfeat.backbones.timm_backbone import TimmBackbone
        >>> import timm
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, dynamic_img_size=True)
        >>> half = (0.5, 0.5, 0.5)
        >>> backbone = TimmBackbone(model, name="mine", image_mean=half, image_std=half)
        >>> backbone(torch.rand(1, 3, 48, 32)).shape
        torch.Size([1, 192, 3, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        layer: int = -1,
        norm: bool = True,
        layers: Sequence[int] | None = None,
        facet: Facet = "tokens",
        head_fastest: bool = False,
        positions: PositionRule | None = None,
        fixed_size: tuple[int, int] | None = None,
    ) -> None:
        check_choice("facet", facet, get_args(Facet))
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
            raise UnsupportedError(
                f"{name} ({type(model).__name__}) has no forward_intermediates to read layers; "
                "wrap a function that returns (B, C, h, w) in upfeat.CallableBackbone"
            )
        described: Any = model.feature_info  # of each layer: its channels and its total stride
        infos = list(getattr(described, "info", described))
        given = [layer] if layers is None else list(layers)
        self.layers = [_check_layer(name, each, len(infos)) for each in given]
        _check_layers(name, self.layers, infos, facet)
        stride = int(infos[self.layers[0]]["reduction"])
        super().__init__(
            name=name,
            dim=sum(_channels(model, infos[each], norm) for each in self.layers),
            patch_size=stride,
            size_multiple=_size_multiple(model, stride),
            image_mean=image_mean,
            image_std=image_std,
            layer=self.layers[0] if layers is None else None,
            fixed_size=fixed_size,
        )
        self.model = model
        self.facet, self.head_fastest, self.positions = facet, head_fastest, positions
        for each in self.layers if facet != "tokens" else ():
            _attention(name, model, each)
        if positions is not None:
            _set_position_rule(name, model, positions)
        self.norm = norm and type(model).__name__ not in _POOLED_NORM
        self.freeze()

    def _extract(self, image: Tensor) -> Tensor:
        if self.facet != "tokens":
            return self._facets(image)
        features = self._intermediates(image, self.norm)
        return features[0] if len(features) == 1 else torch.cat(features, dim=1)

    def _intermediates(self, image: Tensor, norm: bool) -> list[Tensor]:
        """Run the network as far as needed: (B, C, h, w) of each layer, in the order asked for."""
        try:
            model: Any = self.model
            found: list[Tensor] = model.forward_intermediates(
                image,
                indices=sorted(set(self.layers)),
                norm=norm,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except AssertionError as error:
            # Attention over blocks or windows has requirements that timm's description lacks.
            raise ValueError(self._refusal(image, error)) from error
        by_layer = dict(zip(sorted(set(self.layers)), found, strict=True))
        return [by_layer[each] for each in self.layers]

    def _facets(self, image: Tensor) -> Tensor:
        """Read keys, queries or values of the layers' attention off its joint projection."""
        caller = threading.get_ident()
        seen: dict[int, Tensor] = {}
        handles = []
        for each in self.layers:

            def keep(_: nn.Module, __: object, output: Tensor, layer: int = each) -> None:
                if threading.get_ident() == caller:
                    seen[layer] = output  # (B, prefix + h*w, 3 * C)

            handles.append(_attention(self.name, self.model, each).qkv.register_forward_hook(keep))
        try:
            self._intermediates(image, norm=False)
        finally:
            for handle in handles:
                handle.remove()
        part = ("queries", "keys", "values").index(self.facet)
        height, width = self.grid_size(tuple(image.shape[-2:]))
        maps = []
        for each in self.layers:
            tokens = seen[each].chunk(3, dim=-1)[part][:, -height * width :]  # (B, h*w, C)
            if self.head_fastest:
                heads = int(_attention(self.name, self.model, each).num_heads)
                tokens = tokens.unflatten(-1, (heads, -1)).transpose(-1, -2).flatten(-2)
            maps.append(tokens.mT.reshape(len(tokens), -1, height, width))
        return torch.cat(maps, dim=1)

    def forward_added(self, image: Tensor, added: Tensor) -> Tensor:
        """Compute the features with a map added to the patch embedding.

        The map is added before positions, class token and blocks, as click maps are in interactive
        segmentation (Q. Liu et al., "SimpleClick", arXiv 2210.11006, section 3). The result is
        differentiable with respect to both arguments.

        Args:
            image: (B, 3, H, W), as :meth:`forward` takes it.
            added: (B, dim, h, w) or (1, dim, h, w), (h, w) = ``grid_size((H, W))``; it is cast to
                the dtype of the embedding.

        Returns:
            (B, dim, h, w), as :meth:`forward`.

        Raises:
            UnsupportedError: the network has no patch embedding of the output's grid and width.
            ValueError: as :meth:`forward`, or ``added`` has another shape.

        Example:
            >>> import torch
            >>> from upfeat.backbones import create_backbone
            >>> vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
            >>> image, clicks = torch.rand(1, 3, 32, 48), torch.zeros(1, 192, 2, 3)
            >>> torch.equal(vit.forward_added(image, clicks), vit(image))
            True
        """
        embed = getattr(self.model, "patch_embed", None)
        if not isinstance(embed, nn.Module):
            raise UnsupportedError(f"{self.name} has no patch embedding; choose a transformer")
        self._check(image)
        grid = self.grid_size(tuple(image.shape[-2:]))
        expected = (image.shape[0], self.dim, *grid)
        if added.shape[1:] != expected[1:] or added.shape[0] not in (1, expected[0]):
            raise ValueError(
                f"added must be {expected} for an image {shape_text(image)}, got "
                f"{shape_text(added)}"
            )
        caller = threading.get_ident()

        def add(module: nn.Module, inputs: object, tokens: Tensor) -> Tensor:
            if threading.get_ident() != caller:  # another thread's image
                return tokens
            moved = added.to(tokens.dtype).movedim(1, -1)  # (B, h, w, dim)
            moved = moved if tokens.dim() == 4 else moved.flatten(1, 2)  # (B, h*w, dim)
            if tokens.shape[1:] != moved.shape[1:]:
                raise UnsupportedError(
                    f"the patch embedding of {self.name} is {shape_text(tokens)}, not of the grid "
                    f"and width of its features {expected}; choose a plain transformer"
                )
            return tokens + moved

        handle = embed.register_forward_hook(add)
        try:
            return self(image)
        finally:
            handle.remove()

    def _class_token(self, image: Tensor) -> Tensor:
        model: Any = self.model
        if not isinstance(getattr(model, "cls_token", None), Tensor):
            return super()._class_token(image)
        if self.layer is None or self.facet != "tokens":
            raise UnsupportedError(f"{self.name} has no single class token; build it of one layer")
        if "return_prefix_tokens" not in inspect.signature(model.forward_intermediates).parameters:
            raise UnsupportedError(
                f"{self.name} has no class token beside the cells of a layer, as in networks "
                f"where it joins after all blocks ({type(model).__name__}); choose a plain "
                "transformer, or do without"
            )
        outputs = model.forward_intermediates(
            image,
            indices=[self.layer],
            return_prefix_tokens=True,
            norm=self.norm,
            stop_early=True,
            intermediates_only=True,
        )
        prefix: Tensor = outputs[0][1]  # (B, class and registers, C)
        return prefix[:, 0]

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return the feature grid (h, w) of an image of size (H, W)."""
        # A network tied to one size may round an incomplete last cell up.
        stride = int(self.patch_size)
        return -(-image_size[0] // stride), -(-image_size[1] // stride)

    def _check_features(self, image: Tensor, features: Tensor) -> None:
        expected = (image.shape[0], self.dim, *self.grid_size(tuple(image.shape[-2:])))
        if tuple(features.shape) != expected:
            raise UnsupportedError(
                f"layer {_some(self.layers)} of {self.name} returned {shape_text(features)} for an "
                f"image {shape_text(image)}, where its description promises {expected}: the map "
                "does not cover the image evenly (convolutions without padding, windows that do "
                "not fit the grid, several scales in one). Choose another size, layer or network, "
                "or wrap it in upfeat.CallableBackbone"
            )

    def _refusal(self, image: Tensor, error: AssertionError) -> str:
        config = getattr(self.model, "pretrained_cfg", None) or {}
        size = config.get("input_size")
        advice = f"it was made for {tuple(size[1:])}" if size else "try another size"
        text = str(error) or "a check without message failed"
        return (
            f"{self.name} does not take images of {tuple(image.shape[-2:])} at layer "
            f"{_some(self.layers)} ({text}); {advice}"
        )


def _size_multiple(model: nn.Module, stride: int) -> int:
    """Return what the image's sides must be multiples of, for a layer of this total stride."""
    if type(model).__name__ == "HighResolutionNet":
        return 32  # every layer needs the whole pyramid
    if any(type(module).__name__ == "MobileVitV2Block" for module in model.modules()):
        return 2 * stride  # attention among every second pixel of the map
    return stride


def _channels(model: nn.Module, info: Mapping[str, Any], norm: bool) -> int:
    neck = getattr(model, "neck", None)
    if norm and type(model).__name__ == "VisionTransformerSAM" and isinstance(neck, nn.Sequential):
        # What timm applies as the final norm of SAM is its neck, which narrows the map.
        return int(neck.get_parameter("0.weight").shape[0])
    return int(info["num_chs"])


def _check_layer(name: str, layer: int, count: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
        raise ValueError(
            f"{name} has no layer {layer!r}; valid layers are 0 to {count - 1}, or -{count} to -1 "
            "counted from the last"
        )
    return layer % count


def _some(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _check_layers(
    name: str, layers: Sequence[int], infos: Sequence[Mapping[str, Any]], facet: str
) -> None:
    strides = {int(infos[each]["reduction"]) for each in layers}
    if len(strides) != 1:
        what = "have several grids" if strides else "are none"
        raise ValueError(
            f"layers {list(layers)} of {name} {what}; name layers of one grid, or build a "
            "backbone for each"
        )
    if facet != "tokens" and len({int(info["reduction"]) for info in infos}) != 1:
        raise UnsupportedError(f"{name} is no plain transformer: it has no {facet} on its grid")


def _attention(name: str, model: nn.Module, layer: int) -> Any:
    """Return the attention of a block, which must project queries, keys and values at once."""
    blocks: Any = getattr(model, "blocks", None)
    attention = getattr(blocks[layer], "attn", None) if blocks is not None else None
    if not isinstance(getattr(attention, "qkv", None), nn.Linear):
        raise UnsupportedError(
            f"block {layer} of {name} has no joint projection of queries, keys and values to read"
        )
    return attention


def _set_position_rule(name: str, model: Any, rule: PositionRule) -> None:
    """Let a plain transformer of timm bring its position table to other grids by this rule."""
    check_choice("positions", rule, get_args(PositionRule))
    table = getattr(model, "pos_embed", None)
    known = isinstance(table, nn.Parameter) and hasattr(model, "no_embed_class")
    if not known or not getattr(model, "dynamic_img_size", False):
        raise UnsupportedError(f"{name} has no learned position table that can be resized")

    def with_rule(self: Any, cells: Tensor) -> Tensor:
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        positions = resize_positions(self.pos_embed, cells.shape[1:3], rule, prefix=prefix)
        first = [
            token.expand(len(cells), -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        tokens = cells.flatten(1, 2)  # (B, h, w, C) -> (B, h*w, C)
        if self.no_embed_class:
            tokens = torch.cat([*first, tokens + positions], dim=1)
        else:
            tokens = torch.cat([*first, tokens], dim=1) + positions
        embedded: Tensor = self.pos_drop(tokens)
        return embedded

    model._pos_embed = types.MethodType(with_rule, model)


def list_timm_names(pretrained: bool = False) -> list[str]:
    """Return the names of timm's networks, with tags if only those with weights are asked for."""
    ensure_torchvision_operators()
    import timm

    return timm.list_models(pretrained=pretrained)


@register_provider("timm", names=list_timm_names)
def create_timm_backbone(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    layer: int = -1,
    norm: bool = True,
    layers: Sequence[int] | None = None,
    facet: Facet = "tokens",
    head_fastest: bool = False,
    positions: PositionRule | None = None,
    image_size: Sequence[int] | int | None = None,
    **model_options: Any,
) -> TimmBackbone:
    """Build ``timm/<name>``; called through :func:`upfeat.create_backbone`.

    ``name`` is one of timm, with or without tag; without, timm's default tag is meant.
    ``image_size`` (H, W) is what the network is built for, where it is tied to one size, and the
    size of the position table of a network that resizes it; ``model_options`` are constructor
    arguments of the network, such as ``depth=2``. All else is as in :class:`TimmBackbone`.
    """
    from upfeat.backbones.timm_weights import load_timm_weights, locate_timm_weights

    ensure_torchvision_operators()
    architecture, tag = _split_name(name)
    path: Path | None = None
    if weights != "random":
        tag, path = locate_timm_weights(architecture, tag, weights)
    full_name = f"{architecture}.{tag}" if tag else architecture
    model, fixed_size = _build(full_name, image_size, model_options)
    if path is not None:
        load_timm_weights(model, path, f"timm/{full_name}")
    config = data_config(model)
    changed = {
        "layers": None if layers is None else tuple(layers),
        "facet": None if facet == "tokens" else facet,
        "head_fastest": head_fastest or None,
        "positions": positions,
    }
    return TimmBackbone(
        model,
        name=call_text(f"timm/{full_name}", {k: v for k, v in changed.items() if v is not None}),
        image_mean=config["mean"],
        image_std=config["std"],
        layer=layer,
        norm=norm,
        layers=layers,
        facet=facet,
        head_fastest=head_fastest,
        positions=positions,
        fixed_size=fixed_size,
    )


def data_config(model: nn.Module) -> dict[str, Any]:
    """Return what timm says of a network's input: mean, std, size."""
    from timm.data import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(model)
    return config


def _split_name(name: str) -> tuple[str, str]:
    """Return architecture and tag; the tag is empty where none is given."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        close = difflib.get_close_matches(architecture, known, n=8, cutoff=0.0)
        raise UnknownNameError("backbone", f"timm/{name}", [f"timm/{n}" for n in close])
    known_tags = [str(full).partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in known_tags:
        known = [f"timm/{architecture}.{t}" for t in known_tags if t]
        raise UnknownNameError("backbone", f"timm/{name}", known or [f"timm/{architecture}"])
    return architecture, tag


# What makes a network take any image size, in order of preference; families differ in the word.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def _build(
    full_name: str, image_size: Sequence[int] | int | None, options: Mapping[str, Any]
) -> tuple[nn.Module, tuple[int, int] | None]:
    """Build the network without classifier; return it and the only size it takes, or None."""
    import timm

    arguments: dict[str, Any] = {"num_classes": 0, **options}
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        arguments["img_size"] = check_size(size, "image_size")
    for any_size in _ANY_SIZE:
        try:
            model = timm.create_model(full_name, pretrained=False, **any_size, **arguments)
        except TypeError as error:
            refused = next(
                (key for key in {**any_size, **arguments} if f"'{key}'" in str(error)), None
            )
            if refused is None or "keyword argument" not in str(error):
                raise
            if refused in any_size:
                continue
            word = "image_size" if refused == "img_size" else refused
            raise ValueError(
                f"timm/{full_name} takes no option {word!r}, or sets it itself; its options "
                "are the arguments of timm's constructor of this network"
            ) from error
        return model, None if any_size else _fixed_size(model, arguments.get("img_size"))
    raise AssertionError("the last choice adds no argument")


def tied_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the only image size (H, W) that a network takes as it was built; None if any."""
    if getattr(model, "dynamic_img_size", False):
        return None
    embed: Any = getattr(model, "patch_embed", None)
    if getattr(embed, "strict_img_size", False) and getattr(embed, "img_size", None):
        height, width = embed.img_size
        return int(height), int(width)
    return _fixed_size(model, None)


def _fixed_size(model: nn.Module, built_for: tuple[int, int] | None) -> tuple[int, int] | None:
    if built_for is not None:
        return built_for
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("fixed_input_size", False):
        return None
    _, height, width = config["input_size"]
    return height, width
