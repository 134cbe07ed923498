"""What is measured: sizes, and how a method is called at them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upfeat.loading import load_upsampler
from upfeat.ops.images import Size
from upfeat.ops.runtime import DrawsFrom
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.fitted import short_fit
from upfeat.upsamplers.registry import get_class

__all__ = ["CASES", "Case", "scaling_cases"]


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: as the tables show it.
        image_size: (H, W) of the guidance.
        grid: (h, w) of the features.
        output_size: (H', W').
        channels: C of the features.
        values: a linear head with so many outputs is wanted; None for the features themselves.
        backward: measure forward and backward instead of forward.
        tiles: consume :meth:`Upsampler.tiles` instead of calling.

    Example:
        >>> from upfeat.evaluation.benchmark import CASES
        >>> CASES["448"].grid
        (32, 32)
    """

    name: str
    image_size: Size
    grid: Size
    output_size: Size
    channels: int = 384
    values: int | None = None
    backward: bool = False
    tiles: bool = False

    @property
    def plain_forward(self) -> bool:
        """Whether the case is one forward call that returns features."""
        return self.values is None and not self.backward and not self.tiles

    def build(self, method: str, dtype: torch.dtype, device: torch.device) -> Upsampler:
        """Return the method with random weights, in eval mode, its fit shortened if it is long."""
        short = short_fit(get_class(method))
        with DrawsFrom(torch.Generator().manual_seed(0)):
            upsampler = load_upsampler(method, self.channels, allow_random=True, **short)
        return upsampler.eval().to(device, dtype)

    def inputs(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a random image (1, 3, H, W), float32 at least, and features (1, C, h, w)."""
        wide = torch.promote_types(dtype, torch.float32)
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(1, 3, *self.image_size, generator=generator).to(device, wide)
        features = torch.randn(1, self.channels, *self.grid, generator=generator)
        return image, features.to(device, dtype)

    def ours(
        self, upsampler: Upsampler, head: nn.Module | None
    ) -> Callable[[Tensor, Tensor], None]:
        """Return the workload on upfeat: the head goes first where the method allows it."""
        first = upsampler.info.abilities.linear

        def forward(image: Tensor, features: Tensor) -> Tensor:
            if head is None:
                return upsampler(image, features, self.output_size)
            if first:
                return upsampler(image, features, self.output_size, values=head(features))
            return head(upsampler(image, features, self.output_size))

        def tiled(image: Tensor, features: Tensor) -> None:
            values = head(features) if head is not None and first else None
            for _, tile in upsampler.tiles(image, features, self.output_size, values):
                del tile

        return tiled if self.tiles else self._workload(forward, upsampler)

    def rival(
        self, function: Callable[..., Tensor], upsampler: Upsampler, head: nn.Module | None
    ) -> Callable[[Tensor, Tensor], None]:
        """Return the workload on another implementation: features first, then the head."""

        def forward(image: Tensor, features: Tensor) -> Tensor:
            output = function(image.to(features.dtype), features, self.output_size)
            return output if head is None else head(output)

        return self._workload(forward, upsampler)

    def head(self, dtype: torch.dtype, device: torch.device) -> nn.Module | None:
        """Return the linear head of the case, or None."""
        if self.values is None:
            return None
        return nn.Conv2d(self.channels, self.values, 1).to(device, dtype)

    def _workload(
        self, forward: Callable[[Tensor, Tensor], Tensor], upsampler: Upsampler
    ) -> Callable[[Tensor, Tensor], None]:
        def infer(image: Tensor, features: Tensor) -> None:
            with torch.inference_mode():
                forward(image, features)

        gradients: list[Tensor] = []  # of the output, made once: a loss is not the method's cost

        def train(image: Tensor, features: Tensor) -> None:
            upsampler.zero_grad(set_to_none=True)
            output = forward(image, features)
            if not gradients:
                gradients.append(torch.randn_like(output))
            output.backward(gradients[0])

        return train if self.backward else infer


def _square(name: str, image: int, grid: int, output: int, **options: object) -> Case:
    return Case(name, (image, image), (grid, grid), (output, output), **options)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _square("224", 224, 16, 224),
        _square("448", 448, 32, 448),
        _square("448-21", 448, 32, 448, values=21),
        _square("1024", 448, 32, 1024),
        _square("224-train", 224, 16, 224, backward=True),
        _square("448-train", 448, 32, 448, backward=True),
        _square("2048-21", 1024, 64, 2048, values=21),
        _square("2048-tiles", 1024, 64, 2048, tiles=True),
        _square("2048-tiles-full-image", 2048, 64, 2048, tiles=True),
    )
}


def scaling_cases(sides: tuple[int, ...] = (112, 224, 448, 896, 1024, 1536, 2048)) -> list[Case]:
    """Return one case for each output side, all from the same 224 image and 16x16 features.

    Example:
        >>> from upfeat.evaluation.benchmark import scaling_cases
        >>> [case.output_size for case in scaling_cases((112, 224))]
        [(112, 112), (224, 224)]
    """
    return [_square(f"scaling-{side}", 224, 16, side, tiles=True) for side in sides]
