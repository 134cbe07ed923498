"""Any function of an image as a backbone."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from upfeat.backbones.base import Backbone

__all__ = ["CallableBackbone"]


class CallableBackbone(Backbone):
    """A function or module that returns (B, C, h, w), with the facts that it does not carry itself.

    A module is registered, moved by ``.to`` and frozen; a plain function keeps its own state, and
    its input is passed on in the dtype in which it comes.

    Args:
        function: maps an image (B, 3, H, W) to features (B, C, h, w).
        dim: number of feature channels C.
        patch_size: H / h, in pixels.
        image_mean, image_std: the normalisation that the function expects; default: none, RGB in
            [0, 1].
        size_multiple: what H and W must be multiples of; default ``patch_size``.
        layer: for the record only.
        name: how messages and reports call it.

    Raises:
        ValueError: on construction if ``function`` cannot be called; on a call if what it returns
            is not (B, dim, H / patch_size, W / patch_size).

    Example:
        >>> import torch
        >>> from upfeat.backbones import CallableBackbone
        >>> conv = torch.nn.Conv2d(3, 8, kernel_size=4, stride=4)
        >>> CallableBackbone(conv, dim=8, patch_size=4)(torch.rand(1, 3, 32, 64)).shape
        torch.Size([1, 8, 8, 16])
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        dim: int,
        patch_size: int,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        size_multiple: int | None = None,
        layer: int | None = None,
        name: str = "callable",
    ) -> None:
        if not callable(function):
            raise ValueError(
                f"function must map an image to features, got {type(function).__name__}; "
                "pass a function, a lambda or an nn.Module"
            )
        if patch_size != int(patch_size):
            raise ValueError(f"patch_size must be a whole number of pixels, got {patch_size}")
        super().__init__(
            name=name,
            dim=dim,
            patch_size=patch_size,
            image_mean=image_mean,
            image_std=image_std,
            size_multiple=size_multiple,
            layer=layer,
        )
        # nn.Module registers the function if it is a module itself.
        self.function = function
        if isinstance(function, nn.Module):
            self.freeze()

    def _extract(self, image: Tensor) -> Tensor:
        return self.function(image)
