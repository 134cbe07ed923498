"""What the protocols measure: an upsampler, any function, or the backbone's own grid."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from upfeat.data.feature_cache import weights_fingerprint
from upfeat.loading import load_upsampler, split_label, split_specs
from upfeat.ops.images import Size
from upfeat.ops.runtime.draws import DrawsFrom
from upfeat.pipeline import Pipeline
from upfeat.upsamplers import (
    Abilities,
    Upsampler,
    UpsamplerInfo,
    WholeMapUpsampler,
    create_upsampler,
    list_upsamplers,
)
from upfeat.upsamplers.base import NO_EXPORT

if TYPE_CHECKING:
    from upfeat.backbones import Backbone


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
        >>> from upfeat.evaluation.methods import CallableUpsampler
        >>> def bicubic(image, features, output_size):
        ...     return torch.nn.functional.interpolate(features, output_size, mode="bicubic")
        >>> up = CallableUpsampler(bicubic)
        >>> up(torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)).shape, up.info.name
        (torch.Size([1, 5, 8, 8]), 'bicubic')
    """

    info = UpsamplerInfo(
        name="callable",
        summary="A function of the user's.",
        abilities=Abilities(mixes_values=False, universal=True, compile=False, export=NO_EXPORT),
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

    Attributes:
        label: in tables and file names.
        upsampler: what is measured, in evaluation mode; a function that is no
            :class:`~upfeat.upsamplers.Upsampler` becomes a :class:`CallableUpsampler`.
        identity: name, configuration and fingerprint of the weights.
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

    def on(self, pipe: Pipeline) -> Pipeline:
        """Return the pipeline of a protocol with this upsampler."""
        return pipe.with_upsampler(self.upsampler)


class LowRes(Method):
    """The row without an upsampler, ``low-res``: every pixel has the features of its cell.

    Protocols that work on a grid of their own choice (``vos``, the probes on crops) take the
    backbone's own grid instead.
    """

    NAME: ClassVar[str] = "low-res"

    def __init__(self, label: str = NAME) -> None:
        super().__init__(label, create_upsampler("nearest"))
        object.__setattr__(self, "identity", {"name": self.NAME})


class JointMethod(Method):
    """An untrained upsampler that is trained together with the heads, once a seed.

    Its own weights are not used, only its class and configuration.
    """

    def __init__(self, label: str, upsampler: Upsampler) -> None:
        super().__init__(label, upsampler)
        self.identity["weights"] = "trained with the heads, one copy a seed"

    def copy(self, seed: int, device: torch.device) -> Upsampler:
        """Return a new upsampler with random weights of this seed, in evaluation mode."""
        with DrawsFrom(torch.Generator().manual_seed(seed)):
            return type(self.upsampler)(**self.upsampler.config).to(device).eval()


Weights = Literal["trained", "joint", "untrained"]


def load_methods(
    specs: str, backbone: "Backbone | int", *, weights: Weights = "trained", device: str = "cpu"
) -> list[Method]:
    """Load the entries of ``--upsampler``.

    Args:
        specs: with commas between them: ``low-res``, or what :func:`upfeat.load_upsampler` reads,
            with ``LABEL=`` before it or without.
        backbone: whose features are upsampled, or their number of channels.
        weights: of a method that learns and is named without any: ``trained`` refuses it,
            ``untrained`` gives it random ones, ``joint`` makes it a :class:`JointMethod` where none
            are published.
        device: where they run.

    Raises:
        ValueError: a name is unknown, a method must be trained first, or a label occurs twice.
    """
    methods = [_load(spec, backbone, weights, device) for spec in split_specs(specs)]
    labels = [method.label for method in methods]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(
            f"--upsampler names {', '.join(sorted(twice))} twice; tell them apart: LABEL=NAME"
        )
    return methods


def _load(spec: str, backbone: "Backbone | int", weights: Weights, device: str) -> Method:
    label, spec = split_label(spec)
    if spec == LowRes.NAME:
        return LowRes(label)
    name = spec.partition("(")[0].strip()
    joint = weights == "joint" and name in list_upsamplers()
    joint = joint and not list_upsamplers(f"{name}.*", pretrained=True)
    upsampler = load_upsampler(spec, backbone, allow_random=joint or weights == "untrained")
    upsampler = upsampler.eval().to(device)
    learns = next(upsampler.parameters(), None) is not None
    if joint and learns and not upsampler.info.abilities.per_image:
        return JointMethod(label, upsampler)
    return Method(label, upsampler)
