"""What a method is and can do, as data.

Legend: ``H' W'`` output grid. Sizes are ``(height, width)``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from upfeat.errors import check_normalization

__all__ = [
    "ANY_SIZE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NO_EXPORT",
    "Abilities",
    "Exports",
    "UpsamplerInfo",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


ExportSizes = Literal["dynamic", "static", "no"]
"""Any height and width, those that were traced, or no export at all."""


@dataclasses.dataclass(frozen=True)
class Exports:
    """At which sizes an exported graph of a method runs, by format.

    Attributes:
        torch: ``torch.export``, and AOTInductor behind it.
        onnx: ONNX Runtime, on machines and in browsers.
        openvino: OpenVINO, which reads the ONNX graph.
    """

    torch: ExportSizes = "static"
    onnx: ExportSizes = "static"
    openvino: ExportSizes = "static"

    def __bool__(self) -> bool:
        """Whether ``torch.export``, on which all formats build, takes the method."""
        return self.torch != "no"


ANY_SIZE = Exports("dynamic", "dynamic", "dynamic")
NO_EXPORT = Exports("no", "no", "no")


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a method can do, as data: the one record that callers, tables and pages read.

    Attributes:
        linear: the output is a mean of the values with one set of weights for all channels, which
            sum to 1, so that a linear head may go first: ``head(up(F)) == up(values=head(F))``.
        mixes_values: the output mixes what is given as ``values=``, of any number of channels. A
            method without it makes new features of its own and refuses ``values=``.
        any_size: any output size and ratio; otherwise ``info.factor`` or the next whole ratio, and
            a bilinear resize.
        universal: one set of weights, or none, serves every backbone.
        per_image: optimises at test time, for each image.
        tiles: ``Upsampler.tiles`` yields the output in bounded memory.
        query: ``Upsampler.query`` answers at single positions.
        gradients: the output carries gradients; a method that optimises for each image and
            regresses the result has none to give.
        compile: ``torch.compile(fullgraph=True)`` takes it.
        export: at which sizes its exported graphs run, by format (`Exports`).

    Raises:
        ValueError: ``linear`` without ``mixes_values``.

    Example:
        A head of 21 classes goes before the upsampler where that changes nothing:

        >>> import torch, upfeat
        >>> up, head = upfeat.create_upsampler("bilinear"), torch.nn.Conv2d(384, 21, 1)
        >>> image, features = torch.rand(1, 3, 64, 64), torch.rand(1, 384, 4, 4)
        >>> if up.info.abilities.linear:
        ...     logits = up(image, features, values=head(features))
        ... else:
        ...     logits = head(up(image, features))
        >>> logits.shape
        torch.Size([1, 21, 64, 64])
    """

    linear: bool = False
    mixes_values: bool = True
    any_size: bool = True
    universal: bool = False
    per_image: bool = False
    tiles: bool = False
    query: bool = False
    gradients: bool = True
    compile: bool = True
    export: Exports = Exports()

    def __post_init__(self) -> None:
        if self.linear and not self.mixes_values:
            raise ValueError("a method that is linear in its values mixes them; got linear alone")


@dataclasses.dataclass(frozen=True)
class UpsamplerInfo:
    """What a method is.

    Attributes:
        name: registry name.
        summary: one line.
        when: when to take it, one sentence about whoever reads.
        claim: what its authors say for it, in our words.
        as_baseline: how a paper ran the method as a baseline, by the paper's name ("JAFAR",
            "LoftUp"), read from the paper and its code; a paper without an entry did not run it.
        paper, year, arxiv: where it was published; arxiv is the number or None.
        code: address of the original code, or None.
        code_license, weights_license: as their authors state them.
        task_agnostic: trained (or defined) without a downstream task.
        abilities: what the method can do.
        image_mean, image_std: normalisation of the guidance image (RGB in [0, 1]); None where
            the guidance is the backbone's own input.
        factor: the fixed factor of a method that has one.
        views: the method runs the backbone itself, on the image as it is or on views of it: its
            guidance must be the backbone's own input.
        feature_norm: each cell's features are brought to mean 0 and standard deviation 1 over the
            channels before the method sees them, because it was trained so. An objective sets it;
            ``save_pretrained`` keeps it.
    """

    name: str
    summary: str
    when: str = ""
    claim: str = ""
    as_baseline: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paper: str | None = None
    year: int | None = None
    arxiv: str | None = None
    code: str | None = None
    code_license: str | None = None
    weights_license: str | None = None
    task_agnostic: bool = True
    abilities: Abilities = Abilities()
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    factor: int | None = None
    views: bool = False
    feature_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse a normalisation that divides by zero or is none."""
        check_normalization(self.image_mean, self.image_std)

    def with_abilities(self, **changes: Any) -> Self:
        """Return a copy with other abilities, for an instance whose options change them."""
        return dataclasses.replace(self, abilities=dataclasses.replace(self.abilities, **changes))
