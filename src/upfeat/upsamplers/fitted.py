"""Methods that fit a network to each image, from views of it through the backbone."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from torch import Tensor

from upfeat.upsamplers.base import Upsampler

__all__ = ["FittedUpsampler", "short_fit", "with_views"]


class FittedUpsampler(Upsampler):
    """Base class of the methods that are fitted to each image and look at views of it.

    Attributes:
        short_fit: constructor arguments that shorten a fit of minutes or hours for comparisons and
            benchmarks, which must then say so.
    """

    short_fit: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["_backbone"] = None  # not a part of the model: neither moved nor saved

    def with_backbone(self, backbone: Callable[[Tensor], Tensor] | None) -> Self:
        """Return the upsampler, sharing its weights, with a source of views."""
        other = copy.copy(self)
        other.__dict__["_backbone"] = backbone
        return other


def with_views(upsampler: Upsampler, backbone: Callable[[Tensor], Tensor] | None) -> Upsampler:
    """Give a method that looks at views of the image its source of them; leave others alone."""
    if isinstance(upsampler, FittedUpsampler):
        return upsampler.with_backbone(backbone)
    return upsampler


def short_fit(method: type[Upsampler]) -> Mapping[str, Any]:
    """Return the arguments that shorten a method's fit; none where it fits nothing."""
    return method.short_fit if issubclass(method, FittedUpsampler) else {}
