"""Random draws that come from the generator they are given, and images that are changed by them.

The generator may live on the CPU while the tensors are elsewhere: the draws are then the same on
every device. Images are (B, 3, H, W) in [0, 1] unless stated otherwise; sizes are (height, width).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.images import Size, gaussian_blur, normalize, resize_antialiased

__all__ = [
    "Clamp",
    "cut_part",
    "disturb_image",
    "draw_chance",
    "draw_integer",
    "draw_like",
    "draw_part",
    "draw_uniform",
]

Clamp = Literal["valid", "released"]


def draw_uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Return a number from [low, high)."""
    drawn = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * drawn.item()


def draw_integer(generator: torch.Generator, count: int) -> int:
    """Return one of 0, …, count - 1."""
    drawn = torch.randint(count, (), generator=generator, device=generator.device)
    return int(drawn.item())


def draw_chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return draw_uniform(generator) < probability


def draw_like(
    generator: torch.Generator, tensor: Tensor, shape: Sequence[int], *, normal: bool = True
) -> Tensor:
    """Return N(0, 1) or, with ``normal=False``, [0, 1) numbers in dtype and place of ``tensor``."""
    draw = torch.randn if normal else torch.rand
    return draw(tuple(shape), generator=generator, device=generator.device).to(tensor)


def disturb_image(
    image: Tensor,
    generator: torch.Generator,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    clamp: Clamp = "valid",
    blur: float = 0.5,
    noise: float = 0.3,
    sigma: float = 1.0,
    noise_std: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Blur and noise a *normalised* guidance image, as JAFAR's regulariser does.

    From the released script (the paper does not mention it): one draw for the whole batch decides
    about the blur (5x5), one about the noise, which is added in normalised units. The released
    code then clamps the normalised image to [0, 1], which cuts off more than half of its range,
    and where noise comes without blur it adds in place, so that the clean image gets it too.

    Args:
        image: (B, 3, H, W), normalised with ``mean`` and ``std``.
        generator: source of the draws.
        mean: of that normalisation.
        std: of that normalisation.
        clamp: ``"valid"`` clamps to what [0, 1] is after the normalisation; ``"released"`` does
            what the released code does, the noise in the clean image included.
        blur: its probability.
        noise: its probability.
        sigma: of the blur, in pixels.
        noise_std: of the noise, in normalised units.

    Returns:
        The disturbed image and the clean one, (B, 3, H, W) each. They are the same object where
        nothing was drawn and nothing clamped.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 3, 8, 8)
        >>> noisy, clean = disturb_image(image, torch.Generator(), (0.0,) * 3, (1.0,) * 3, blur=1.0)
        >>> clean is image, noisy.equal(image)
        (True, False)
    """
    blurred, noised = draw_chance(generator, blur), draw_chance(generator, noise)
    disturbed = gaussian_blur(image, sigma) if blurred else image
    if noised:
        disturbed = disturbed + noise_std * draw_like(generator, image, image.shape)
    if clamp == "released":
        clean = disturbed if noised and not blurred else image
        return disturbed.clamp(0, 1), clean
    if not (blurred or noised):
        return image, image
    low = normalize(torch.zeros_like(image[:1, :, :1, :1]), mean, std)
    high = normalize(torch.ones_like(low), mean, std)
    return torch.minimum(torch.maximum(disturbed, low), high), image


def draw_part(
    image: Tensor, masks: Tensor, sizes: Sequence[Size], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return :func:`cut_part` of a size that is drawn; without sizes both as they are."""
    if not sizes:
        return image, masks
    height, width = sizes[draw_integer(generator, len(sizes))]
    return cut_part(image, masks, (height, width), generator)


def cut_part(
    image: Tensor, masks: Tensor, size: Size, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cut the largest part of the shape (h, w) at a random place, and resize it to that size.

    Masks (B, M, H, W), bool or 0 and 1, are resized to the nearest.
    """
    height, width = image.shape[2:]
    scale = min(height / size[0], width / size[1])
    rows, cols = (max(1, round(side * scale)) for side in size)
    top = draw_integer(generator, height - rows + 1)
    left = draw_integer(generator, width - cols + 1)
    part = image[:, :, top : top + rows, left : left + cols]
    cut = masks[:, :, top : top + rows, left : left + cols]
    near = F.interpolate(cut.to(image.dtype), size, mode="nearest-exact")
    return resize_antialiased(part, size), near.to(masks.dtype)
