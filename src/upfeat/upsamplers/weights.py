"""What a method is and can do, and its published weights, as data.

Legend: ``H' W'`` output grid. Sizes are ``(height, width)``.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from upfeat.checkpoints import HubFile
from upfeat.errors import check_normalization

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.saving import SavedModel

__all__ = [
    "ANY_SIZE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NO_EXPORT",
    "Abilities",
    "Checkpoint",
    "Exports",
    "TrainedFor",
    "UpsamplerInfo",
]

Triple = tuple[float, float, float]

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
    image_mean: Triple | None = None
    image_std: Triple | None = None
    factor: int | None = None
    views: bool = False
    feature_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse a normalisation that divides by zero or is none."""
        check_normalization(self.image_mean, self.image_std)

    def with_abilities(self, **changes: Any) -> Self:
        """Return a copy with other abilities, for an instance whose options change them."""
        return dataclasses.replace(self, abilities=dataclasses.replace(self.abilities, **changes))


# -- weights ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainedFor:
    """The backbone whose features a set of weights was trained on; ``config.json`` names it.

    Attributes:
        name: the backbone's spec, such as ``timm/vit_small_patch14_dinov2.lvd142m``, or words.
        layer: index of the layer, from 0; None where it is not known or there is no choice.
        norm: whether the backbone's final norm was applied; None where it is not known.
        image_mean, image_std: normalisation of the backbone's images; None where it is not known.

    Raises:
        ValueError: a normalisation that is none.

    Example:
        >>> import upfeat
        >>> from upfeat.upsamplers.weights import TrainedFor
        >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16", layer=3)
        >>> TrainedFor("upfeat/vit_compact_patch16", layer=4).difference(encoder)
        'layer 4, got layer 3'
    """

    name: str
    layer: int | None = None
    norm: bool | None = None
    image_mean: Triple | None = None
    image_std: Triple | None = None

    def __post_init__(self) -> None:
        mean, std = check_normalization(self.image_mean, self.image_std)
        object.__setattr__(self, "image_mean", mean)
        object.__setattr__(self, "image_std", std)

    @classmethod
    def of(cls, backbone: "Backbone") -> Self:
        """Describe a backbone."""
        mean, std = check_normalization(backbone.image_mean, backbone.image_std)
        return cls(backbone.name, backbone.layer, getattr(backbone, "norm", None), mean, std)

    @classmethod
    def read(cls, content: object) -> Self | None:
        """Read what ``config.json`` holds under ``backbone``; None where no backbone is named.

        Raises:
            ValueError: it describes no backbone.
        """
        if content is None:
            return None
        fields = {"name": str, "layer": int | None, "norm": bool | None}
        names = {field.name for field in dataclasses.fields(cls)}
        if (
            not isinstance(content, dict)
            or not content.keys() <= names
            or not all(isinstance(content.get(key), kind) for key, kind in fields.items())
        ):
            raise ValueError(
                f"its backbone is {content!r}, expected null or an object of {', '.join(names)}"
            )
        return cls(**content)

    def difference(self, backbone: "Backbone") -> str | None:
        """Return how a backbone differs from this one, in words, or None where nothing is known."""
        if not _same_network(self.name, backbone.name):
            return f"{self.name}, got {backbone.name}"
        other = TrainedFor.of(backbone)
        for word, mine, theirs in (
            ("layer", self.layer, other.layer),
            ("norm", self.norm, other.norm),
            ("image_mean", self.image_mean, other.image_mean),
            ("image_std", self.image_std, other.image_std),
        ):
            if None not in (mine, theirs) and mine != theirs:
                return f"{word} {mine}, got {word} {theirs}"
        return None


def _same_network(trained: str, given: str) -> bool:
    """Compare names; words, functions, and specs without tag may well mean the same network."""
    given = given.partition("+")[0]  # strided and larger images: the same network
    if " " in trained or "callable" in (trained, given):
        return True
    tagged = "." in trained and "." in given
    return trained == given if tagged else trained.partition(".")[0] == given.partition(".")[0]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A record of one published set of weights.

    Attributes:
        tag: the part of the name after the dot.
        file: where it is published, and under which file name.
        backbone: the backbone it was trained for, as a spec such as ``timm/…``, or in words.
        feature_dim: channels of that backbone's features; None for a universal method.
        image_mean, image_std: normalisation of the guidance image; None where it is the
            backbone's input.
        training_data: what it was trained on.
        code_license, weights_license, backbone_license: as their authors state them.
        paper: arXiv number.
        config: constructor arguments that the tensors cannot tell.
        note: what a user should know.
        ours: the file has upfeat's own layout, in float16; a model card lies beside it.
        bundled: it comes with the package, in ``upfeat/upsamplers/bundled``; ours are there, or in
            the folder ``weights`` of the source repository.
    """

    tag: str
    file: HubFile
    backbone: str
    feature_dim: int | None
    image_mean: Triple | None
    image_std: Triple | None
    training_data: str
    code_license: str
    weights_license: str
    backbone_license: str
    paper: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    ours: bool = False
    bundled: bool = False

    def trained_for(self) -> TrainedFor | None:
        """Return the backbone that the weights belong to; None for universal ones."""
        return None if self.feature_dim is None else TrainedFor(self.backbone)

    def build_config(self, cls: type["SavedModel"]) -> dict[str, Any]:
        """Return constructor arguments for this record."""
        width = {} if self.feature_dim is None else {"feature_dim": self.feature_dim}
        return width | dict(self.config)

    def local_names(self, arch: str) -> list[str]:
        """Return the file names under which local folders are searched, best first."""
        return [f"{arch}.{self.tag}", f"{arch}_{self.tag}", self.file.local_name]


NOT_COMPARED = dict.fromkeys(("JAFAR", "LoftUp"), "not compared (published later)")
"""``as_baseline`` of the methods that are younger than both papers."""

BUNDLED_IMAGES = (
    "1941 images: training splits of BSDS500, MSRC v2, CamVid and NYUv2 with their regions, and "
    "900 ImageNet images with superpixels"
)
"""What the weights in the package were trained on, unless their record says otherwise."""


def own_checkpoint(
    name: str,
    tag: str,
    sha256: str,
    backbone: str,
    feature_dim: int | None,
    image_mean: Triple,
    image_std: Triple,
    *,
    training_data: str = BUNDLED_IMAGES,
    paper: str = "",
    config: Mapping[str, Any] | None = None,
    note: str = "",
    bundled: bool = True,
) -> Checkpoint:
    """Return the record of weights of ours.

    They are trained by ``upfeat.training.recipes.bundled`` and put there, with a model card and the
    loss curve, by ``tools/bundle_upsampler.py``, which prints the hash.
    """
    universal = feature_dim is None
    return Checkpoint(
        tag=tag,
        file=HubFile(
            filename=f"{name}.{tag}.safetensors",
            sha256=sha256,
            place="the package" if bundled else "the folder weights of upfeat's source repository",
        ),
        backbone=backbone,
        feature_dim=feature_dim,
        image_mean=image_mean,
        image_std=image_std,
        training_data=training_data,
        code_license="Apache-2.0",
        weights_license="Apache-2.0 (some training images are for research only, see the card)",
        backbone_license="none needed: the weights serve any backbone"
        if universal
        else "Apache-2.0",
        paper=paper,
        config=config or {},
        note=note,
        ours=True,
        bundled=bundled,
    )
