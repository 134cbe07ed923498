"""Published weights: typed records."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from upfeat.checkpoints import HubFile
from upfeat.errors import check_normalization

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone
    from upfeat.upsamplers.saving import SavedModel

__all__ = ["Checkpoint", "TrainedFor"]

Triple = tuple[float, float, float]


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
    image_mean: tuple[float, float, float] | None
    image_std: tuple[float, float, float] | None
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
