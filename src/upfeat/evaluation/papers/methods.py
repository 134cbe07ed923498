"""The methods of the papers' rows: how each gets its weights, at the papers' size and small.

Nothing is imported of them: names of upsamplers and recipes are looked up when a row is run.
"""

from pydantic import Field

from upfeat.errors import UnknownNameError
from upfeat.evaluation.results import FrozenRecord

__all__ = ["METHODS", "PaperMethod", "paper_method"]


class PaperMethod(FrozenRecord):
    """A method as the tables run it.

    Attributes:
        spec: of :func:`upfeat.load_upsampler`: a name, perhaps with arguments.
        recipes: what is trained where no published weights fit the backbone, a stage after the
            other.
        small_recipes: the same for a small run.
        images: set that the recipes are trained on.
        joint: trained with the probe where the protocol can, else by a probe before it.
        small_spec: instead of ``spec`` in a small run.
    """

    spec: str
    recipes: tuple[str, ...] = ()
    small_recipes: tuple[str, ...] = ()
    images: str = ""
    joint: bool = False
    small_spec: str = Field(default="")

    @property
    def arch(self) -> str:
        """The upsampler's own name."""
        return self.spec.partition("(")[0]


def _plain(spec: str, small: str = "") -> PaperMethod:
    return PaperMethod(spec=spec, small_spec=small)


def _joint(name: str) -> PaperMethod:
    return PaperMethod(spec=name, joint=True, small_recipes=(f"{name}_small",), images="imagenet")


_LOFTUP = ("loftup_stage1_paper", "loftup_stage2_paper")
_LOFTUP_SMALL = ("loftup_stage1_small", "loftup_stage2_small")

METHODS: dict[str, PaperMethod] = {
    "low-res": _plain("low-res"),
    "nearest": _plain("nearest"),
    "bilinear": _plain("bilinear"),
    "large-2": _plain("large:2"),
    "large-4": _plain("large:4", "large:2"),
    "large-8": _plain("large:8", "large:2"),
    "strided": _plain("strided:6", "strided:8"),
    "strided-1": _plain("strided:1", "strided:8"),
    "carafe": _joint("carafe"),
    "sapa": _joint("sapa"),
    "dysample": _joint("dysample"),
    "resfu": _joint("resfu"),
    "resize-conv": _joint("resize_conv"),
    "liif": _joint("liif"),
    "featup": PaperMethod(
        spec="featup_jbu",
        recipes=("featup_jbu_imagenet_50k",),
        small_recipes=("featup_jbu_small",),
        images="imagenet",
    ),
    "featup-implicit": _plain("featup_implicit", "featup_implicit(steps=2, views=4)"),
    "lift": PaperMethod(
        spec="lift", recipes=("lift_paper",), small_recipes=("lift_small",), images="imagenet"
    ),
    "lift-twice": PaperMethod(
        spec="lift(iterations=2)",
        recipes=("lift_paper",),
        small_recipes=("lift_small",),
        images="imagenet",
    ),
    "jafar": PaperMethod(
        spec="jafar", recipes=("jafar_paper",), small_recipes=("jafar_small",), images="imagenet"
    ),
    "loftup": PaperMethod(
        spec="loftup", recipes=_LOFTUP, small_recipes=_LOFTUP_SMALL, images="sa1b"
    ),
    "anyup": PaperMethod(
        spec="anyup", recipes=("anyup_paper",), small_recipes=("anyup_small",), images="imagenet"
    ),
    "naf": PaperMethod(
        spec="naf", recipes=("naf_paper",), small_recipes=("naf_small",), images="imagenet"
    ),
}


def paper_method(name: str) -> PaperMethod:
    """Return a method of the tables.

    Args:
        name: see :attr:`upfeat.evaluation.papers.PublishedRow.uses`.

    Raises:
        UnknownNameError: there is none of that name.

    Example:
        >>> from upfeat.evaluation.papers.methods import paper_method
        >>> paper_method("loftup").recipes
        ('loftup_stage1_paper', 'loftup_stage2_paper')
    """
    if name not in METHODS:
        raise UnknownNameError("method of the papers", name, METHODS)
    return METHODS[name]
