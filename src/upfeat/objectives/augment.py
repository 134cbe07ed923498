"""Photometric augmentation of one image, after AnyUp's training (arXiv 2510.12764, its code).

Everything works on (3, H, W) in [0, 1] and keeps pixels where they are. The operations have the
usual meanings (those of Pillow and torchvision); the probabilities are in :func:`augment_image`.
"""

import io
from collections.abc import Callable

import torch
from torch import Tensor

from upfeat.objectives.draws import draw_chance, draw_like, draw_uniform
from upfeat.ops.images import gaussian_blur

__all__ = [
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "augment_image",
    "autocontrast",
    "equalize",
    "grayscale",
    "jpeg",
    "posterize",
    "solarize",
]

LUMA = (0.299, 0.587, 0.114)
JPEG_QUALITIES = ((95, 0.25), (80, 0.35), (60, 0.25), (40, 0.15))
LEVELS = 255


def _blend(one: Tensor, other: Tensor, share: float) -> Tensor:
    """``share`` of the first image over the second, cut to [0, 1]; share may exceed 1."""
    return (share * one + (1 - share) * other).clamp(0, 1)


def grayscale(image: Tensor) -> Tensor:
    """Return the luma of (3, H, W), repeated to three channels."""
    luma = torch.einsum("chw,c->hw", image, image.new_tensor(LUMA))
    return luma.expand(3, -1, -1).clone()


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Multiply (3, H, W) by a factor."""
    return (image * factor).clamp(0, 1)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Move (3, H, W) away from its mean grey (factor > 1) or towards it."""
    return _blend(image, grayscale(image)[:1].mean().expand_as(image), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Move (3, H, W) away from its grey version (factor > 1) or towards it."""
    return _blend(image, grayscale(image), factor)


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """Turn the hue of (3, H, W) by a share of the colour circle.

    Example:
        >>> import torch
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        >>> adjust_hue(red, 1 / 3).flatten().round().tolist()
        [0.0, 1.0, 0.0]
    """
    value, index = image.max(0)
    chroma = value - image.amin(0)
    red, green, blue = image / chroma.clamp(min=1e-8)
    # sixths of the circle, by which channel is the largest
    hue = torch.stack((green - blue, blue - red + 2, red - green + 4)).gather(0, index[None])[0]
    hue = (torch.where(chroma > 0, hue, 0) / 6 + turn) % 1
    # each channel falls from the value by the chroma, depending on its distance from the hue
    offsets = image.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    place = (offsets + 6 * hue) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def autocontrast(image: Tensor) -> Tensor:
    """Stretch each channel of (3, H, W) to [0, 1]; a constant channel stays."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (image - low) / spread.clamp(min=1e-8), image)


def equalize(image: Tensor) -> Tensor:
    """Even out the histogram (256 levels) of each channel of (3, H, W)."""
    levels = (image * LEVELS).round().long().clamp(0, LEVELS)
    out = torch.empty_like(image)
    for channel in range(3):
        counts = torch.bincount(levels[channel].flatten(), minlength=LEVELS + 1)
        cumulative = counts.cumsum(0).to(image.dtype)
        lowest = counts[counts > 0][0].to(image.dtype)
        if cumulative[-1] == lowest:  # one level only
            out[channel] = image[channel]
            continue
        table = (cumulative - lowest).clamp(min=0) / (cumulative[-1] - lowest)
        out[channel] = table[levels[channel]]
    return out


def adjust_sharpness(image: Tensor, factor: float) -> Tensor:
    """Move (3, H, W) away from a smoothed version (factor > 1) or towards it; borders stay."""
    kernel = image.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = image.clone()
    inner = torch.nn.functional.conv2d(image[None], kernel / 13, groups=3)[0]
    smooth[:, 1:-1, 1:-1] = inner
    return _blend(image, smooth, factor)


def posterize(image: Tensor, bits: int) -> Tensor:
    """Keep the upper bits of the 8 of each value of (3, H, W)."""
    step = 2 ** (8 - bits)
    return (image * LEVELS).round().div(step, rounding_mode="floor") * step / LEVELS


def solarize(image: Tensor, threshold: float) -> Tensor:
    """Invert the values of (3, H, W) at or above a threshold."""
    return torch.where(image >= threshold, 1 - image, image)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Pass (3, H, W) through a JPEG file in memory (Pillow)."""
    import numpy as np
    from PIL import Image

    pixels = (image.detach() * LEVELS).round().clamp(0, LEVELS).to("cpu", torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=quality)
    read = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    return read.permute(2, 0, 1).to(image) / LEVELS


def _jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors, hue by a turn, in random order."""
    light, contrast = draw_uniform(generator, 0.8, 1.2), draw_uniform(generator, 0.8, 1.2)
    saturation, turn = draw_uniform(generator, 0.7, 1.3), draw_uniform(generator, -0.05, 0.05)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: adjust_brightness(x, light),
        lambda x: adjust_contrast(x, contrast),
        lambda x: adjust_saturation(x, saturation),
        lambda x: adjust_hue(x, turn),
    ]
    order = torch.randperm(len(changes), generator=generator, device=generator.device).tolist()
    for index in order:
        image = changes[index](image)
    return image


def _distort(image: Tensor, generator: torch.Generator, p: float) -> Tensor:
    """SSD's photometric distortion: each change with probability p, contrast early or late."""
    if draw_chance(generator, p):
        image = adjust_brightness(image, draw_uniform(generator, 0.875, 1.125))
    contrast = draw_uniform(generator, 0.5, 1.5) if draw_chance(generator, p) else 1.0
    early = draw_chance(generator, 0.5)
    image = adjust_contrast(image, contrast) if early else image
    if draw_chance(generator, p):
        image = adjust_saturation(image, draw_uniform(generator, 0.5, 1.5))
    if draw_chance(generator, p):
        image = adjust_hue(image, draw_uniform(generator, -0.05, 0.05))
    image = image if early else adjust_contrast(image, contrast)
    if draw_chance(generator, p):
        order = torch.randperm(3, generator=generator, device=generator.device)
        image = image[order.to(image.device)]
    return image


def _draw_quality(generator: torch.Generator) -> int:
    drawn, total = draw_uniform(generator), 0.0
    for quality, share in JPEG_QUALITIES:
        total += share
        if drawn < total:
            return quality
    return JPEG_QUALITIES[-1][0]


def augment_image(image: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Change the colours, not the places, of one image as AnyUp's guidance is changed.

    From the code, in its order: colour jitter 0.2/0.2/0.3/0.05 and SSD's photometric distortion
    together 0.5; grey 0.1; blur 5x5 of sigma 0.3-1.5 0.35; JPEG of quality 95/80/60/40 always;
    autocontrast 0.2; equalise 0.15; sharpness 1.5 0.2; 5 bits 0.1; solarise at 0.9 0.05; invert
    0.02; noise of deviation 0.03 0.6. Several of the code's transforms have a probability of their
    own, one half, inside that (autocontrast is effective with 0.1); it is taken to hold for the six
    from autocontrast to invert (chosen).

    Args:
        image: (3, H, W) in [0, 1], at least 3x3.
        generator: source of all draws.
        strength: s replaces every probability p by p^(1/s), the inner ones too.

    Returns:
        (3, H, W) in [0, 1].

    Example:
        >>> import torch
        >>> out = augment_image(torch.rand(3, 16, 16), torch.Generator().manual_seed(0))
        >>> out.shape, 0 <= out.min() and out.max() <= 1
        (torch.Size([3, 16, 16]), tensor(True))
    """
    if strength <= 0:
        raise ValueError(f"strength must be positive, got {strength}")
    # Training may run under autocast, which would round the guidance to 8 bits of mantissa.
    with torch.autocast(image.device.type, enabled=False):
        return _augmented(image, generator, strength)


def _augmented(image: Tensor, generator: torch.Generator, strength: float) -> Tensor:
    def chance(p: float) -> bool:
        return draw_chance(generator, p ** (1 / strength))

    if chance(0.5):
        image = _distort(_jitter(image, generator), generator, 0.5 ** (1 / strength))
    if chance(0.1):
        image = grayscale(image)
    if chance(0.35):
        image = gaussian_blur(image[None], draw_uniform(generator, 0.3, 1.5))[0]
    image = jpeg(image, _draw_quality(generator))
    rare: list[tuple[float, Callable[[Tensor], Tensor]]] = [
        (0.2, autocontrast),
        (0.15, equalize),
        (0.2, lambda x: adjust_sharpness(x, 1.5)),
        (0.1, lambda x: posterize(x, 5)),
        (0.05, lambda x: solarize(x, 0.9)),
        (0.02, lambda x: 1 - x),
    ]
    for probability, change in rare:
        if chance(probability) and chance(0.5):
            image = change(image)
    if chance(0.6):
        image = image + 0.03 * draw_like(generator, image, image.shape)
    return image.clamp(0, 1)
