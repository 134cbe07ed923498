"""What ``upfeat info`` and the pages of the documentation say about a method beyond its ``info``.

Claims are the authors', in our words. How JAFAR (arXiv 2506.11136) and LoftUp (arXiv 2504.14032)
ran a method as a baseline is read from the papers and their code.
"""

from dataclasses import dataclass

from upfeat.upsamplers.registry import (
    get_checkpoint,
    get_class,
    list_upsamplers,
    needs_feature_dim,
)

__all__ = ["FACTS", "MethodFacts", "needs_of"]

_NOT_COMPARED = "not compared"
_STACK = "four x2 modules, trained jointly with the linear probe, per dataset and task"


@dataclass(frozen=True)
class MethodFacts:
    """A method's claim and its life as a baseline.

    Attributes:
        claim: what its authors say for it.
        jafar: how JAFAR's paper ran it.
        loftup: how LoftUp's paper ran it.

    Example:
        >>> from upfeat.cli.method_facts import FACTS
        >>> FACTS["carafe"].loftup
        'not compared'
    """

    claim: str
    jafar: str = _NOT_COMPARED
    loftup: str = _NOT_COMPARED


FACTS: dict[str, MethodFacts] = {
    "anyup": MethodFacts(
        "One model, trained once, upsamples the features of any backbone to any size.",
        jafar="not compared (published later)",
        loftup="not compared (published later)",
    ),
    "area": MethodFacts("Textbook interpolation; no claim."),
    "bicubic": MethodFacts(
        "Textbook interpolation; no claim.",
        loftup="no row of the tables; the start of its mask-refined pseudo ground truth",
    ),
    "bilinear": MethodFacts(
        "Textbook interpolation; the baseline that every method has to beat.",
        jafar="to the target size; also the last step of every method with a fixed factor",
        loftup="to the target size",
    ),
    "carafe": MethodFacts(
        "Mixing weights predicted from the content upsample better than interpolation at small "
        "cost, in detection, segmentation and inpainting.",
        jafar="trained jointly with the linear probe, per dataset and task, as a x16 stack",
    ),
    "dysample": MethodFacts(
        "Upsampling as learned point sampling: no dynamic convolution, few parameters, fast.",
        jafar=f"{_STACK}; default settings",
    ),
    "featup_implicit": MethodFacts(
        "A network fitted to jittered views of one image gives features at any resolution.",
        loftup="without PCA (303 to 384 channels, +0.4 M parameters; read from the count)",
    ),
    "featup_jbu": MethodFacts(
        "A feed-forward stack that restores lost resolution and can replace the features of a "
        "network in any task.",
        jafar="four x2 stages (x16), then bilinear; retrained on ImageNet for 50,000 steps of "
        "batch 4; the official DINOv2 file in a table of its own",
        loftup="official variant; also retrained under LoftUp's objective, one epoch of 1 M images "
        "of SA-1B",
    ),
    "guided_filter": MethodFacts(
        "An edge-preserving filter in linear time, whatever its radius.",
        jafar="not compared; part of ReSFU",
    ),
    "ifa": MethodFacts(
        "Aligns features of several levels by an implicit function of position; FeatUp's paper "
        "uses it as a x2 baseline."
    ),
    "jafar": MethodFacts(
        "Attention from image queries to semantically modulated keys gives sharp features at any "
        "size, though trained at low resolution only.",
        jafar="the paper's own method",
        loftup="not compared (published later)",
    ),
    "joint_bilateral": MethodFacts(
        "A cheap solution at low resolution, upsampled under a high-resolution image, keeps edges."
    ),
    "joint_bilateral_filter": MethodFacts("NAF's baseline without training; no claim of its own."),
    "joint_bilateral_learned": MethodFacts("NAF's learned baseline; no claim of its own."),
    "kin": MethodFacts("Ours, without a paper: `docs/results.md` holds what was measured."),
    "lanczos": MethodFacts("Textbook interpolation; no claim."),
    "lift": MethodFacts(
        "A light network, trained without labels, doubles the resolution of ViT features and "
        "helps dense tasks at little cost.",
        jafar="its own adaptation, pre-trained on ImageNet, x2, then bilinear; two in a row were "
        "no better; the official file in a table of its own",
        loftup="patch 14 by adaptive max pooling, one epoch of 1 M images of SA-1B",
    ),
    "liif": MethodFacts(
        "A continuous image representation: one network decodes at any resolution.",
        loftup="four hidden layers of 384 (+1.9 M parameters; read from the count), trained under "
        "LoftUp's objective",
    ),
    "loftup": MethodFacts(
        "A coordinate-based cross-attention network, trained on mask-refined pseudo ground truth, "
        "gives better dense features than earlier upsamplers.",
        jafar="compared inside LoftUp's code base",
        loftup="the paper's own method",
    ),
    "naf": MethodFacts(
        "Upsamples any backbone's features without retraining, faster than earlier attention.",
        jafar="not compared (published later)",
        loftup="not compared (published later)",
    ),
    "nearest": MethodFacts("Textbook interpolation; no claim.", jafar="to the target size"),
    "resfu": MethodFacts(
        "Similarity-based upsampling, straight to a high ratio, with finer detail than stacks.",
        jafar="default settings, straight to the target size, trained jointly with the linear "
        "probe, per dataset and task",
    ),
    "resize_conv": MethodFacts(
        "FeatUp's convolutional baseline; no claim of its own.",
        loftup="kernel 3 (+5.4 M parameters; read from the count), trained under LoftUp's "
        "objective",
    ),
    "sapa": MethodFacts(
        "Every fine point is assigned to the coarse cells it resembles, so that regions stay "
        "smooth and edges sharp.",
        jafar=f"{_STACK}; default settings",
    ),
    "uplift": MethodFacts(
        "Repeated doubling with local attenders is as good as cross-attention and scales better.",
        jafar="not compared (published later)",
        loftup="not compared (published later)",
    ),
    "upsample_anything": MethodFacts(
        "Kernels fitted to a single image at test time are hard to beat by trained upsamplers, for "
        "features and other maps.",
        jafar="not compared (published later)",
        loftup="not compared (published later)",
    ),
}


def needs_of(name: str) -> list[str]:
    """Return what a user must have or do before a method works.

    Example:
        >>> from upfeat.cli.method_facts import needs_of
        >>> needs_of("bilinear")
        ['nothing: no weights, no training']
        >>> needs_of("carafe")[0]
        'training together with the task (upfeat train); no weights are published'
    """
    info = get_class(name).info
    tags = list_upsamplers(f"{name}.*", pretrained=True)
    records = [record for tag in tags if (record := get_checkpoint(tag)) is not None]
    needs = []
    if info.abilities.per_image:
        needs.append("an optimisation for each image, at test time")
    elif records and all(record.feature_dim is None for record in records):
        where = "in the package" if any(r.bundled for r in records) else "published"
        needs.append(f"one set of weights for all backbones ({where})")
    elif records:
        inside = sum(record.bundled for record in records)
        where = f", {inside} of them in the package" if inside else ""
        needs.append(f"weights trained for the backbone ({len(records)} published{where})")
    elif not info.task_agnostic:
        needs.append("training together with the task (upfeat train); no weights are published")
    elif _learns(name):
        backbones = "once" if info.abilities.universal else "for each backbone"
        needs.append(f"training {backbones} (upfeat train); no weights are published")
    else:
        needs.append("nothing: no weights, no training")
    if not info.abilities.any_size:
        steps = f"x{info.factor}" if info.factor else "a whole factor"
        needs.append(f"a resize where the output is not the grid times {steps} (done for you)")
    return needs


def _learns(name: str) -> bool:
    """Whether a method has weights at all."""
    width = {"feature_dim": 32} if needs_feature_dim(name) else {}
    return next(get_class(name)(**width).parameters(), None) is not None
