"""Class activation maps, and how faithful they are to the classifier.

Source: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv 1610.02391; Chattopadhay et al.,
"Grad-CAM++", WACV 2018, arXiv 1710.11063 (drop, increase); Poppi et al., "Revisiting the Evaluation
of Class Activation Mapping for Explainability", CVPRW 2021, arXiv 2104.10252 (coherency,
complexity, ADCC).

Legend: ``B`` images, ``C`` channels of the layer, ``h w`` its grid, ``H W`` image. ``y`` is the
probability of a class for the image, ``o`` for the image that the map masks. Scores are fractions.
"""

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import MeanMetric

# -- maps ----------------------------------------------------------------------------------------


def gradcam_weights(gradients: Tensor) -> Tensor:
    """Return the weights (B, C) of the channels: mean gradients (B, C, h, w) of the class's score.

    The gradients are those of the score with respect to the activations, equation (1) of Grad-CAM.
    """
    return gradients.mean((2, 3))


def gradcam_map(activations: Tensor, weights: Tensor) -> Tensor:
    """Return ``relu(sum_k w_k A_k)``, (B, h, w), equation (2) of Grad-CAM.

    Args:
        activations: (B, C, h, w), of the layer or upsampled.
        weights: (B, C), of :func:`gradcam_weights`.

    Raises:
        ValueError: the shapes do not fit.
    """
    if activations.dim() != 4 or weights.shape != activations.shape[:2]:
        raise ValueError(
            "activations must be (B, C, h, w) and weights (B, C), got "
            f"{shape_text(activations)} and {shape_text(weights)}"
        )
    return torch.einsum("bchw,bc->bhw", activations, weights).relu()


def normalize_map(maps: Tensor) -> Tensor:
    """Stretch each map (..., H, W) to [0, 1]: ``(M - min) / (1e-7 + max(M - min))``."""
    above = maps - maps.amin((-2, -1), keepdim=True)
    return above / (1e-7 + above.amax((-2, -1), keepdim=True))


# -- scores of each image ------------------------------------------------------------------------


def average_drop(full: Tensor, masked: Tensor) -> Tensor:
    """Return the share of the probability that is lost, ``max(0, y - o) / y``; low is good.

    Args:
        full: (B,) probability y of the class for the image, positive.
        masked: (B,) probability o for the masked image.
    """
    return (full - masked).clamp(min=0) / full


def average_increase(full: Tensor, masked: Tensor) -> Tensor:
    """Return 1 where ``o > y``, else 0, (B,); high is good."""
    return (masked > full).to(full.dtype)


def average_gain(full: Tensor, masked: Tensor) -> Tensor:
    """Return the share of the missing probability that is won, ``max(0, o - y) / (1 - y)``.

    High is good. 0 where y is 1, and nothing can be won. Arguments as :func:`average_drop`.
    """
    left = 1 - full
    return torch.where(left > 0, (masked - full).clamp(min=0) / left, 0.0)


def coherency(maps: Tensor, masked_maps: Tensor) -> Tensor:
    """Return how alike the maps of image and masked image are, ``(Pearson + 1) / 2``.

    High is good. 0 where a map is the same everywhere, and the correlation undefined.

    Args:
        maps: (B, ..., H, W) maps of the images.
        masked_maps: the same shape, maps of the masked images for the same classes.

    Returns:
        (B,) float64.

    Raises:
        ValueError: the shapes differ.
    """
    if maps.shape != masked_maps.shape or maps.dim() < 2:
        raise ValueError(
            f"both maps must have one shape (B, ..., H, W), got {shape_text(maps)} and "
            f"{shape_text(masked_maps)}"
        )
    # (B, ..., H, W) -> (B, pixels)
    first, second = (each.flatten(1).double() for each in (maps, masked_maps))
    varies = (first.amax(1) > first.amin(1)) & (second.amax(1) > second.amin(1))
    first, second = (each - each.mean(1, keepdim=True) for each in (first, second))
    product = (first * second).sum(1)
    pearson = product / (first.square().sum(1) * second.square().sum(1)).sqrt()
    return torch.where(varies, (pearson.clamp(-1, 1) + 1) / 2, 0.0)


def complexity_l0(maps: Tensor) -> Tensor:
    """Return the share of pixels of maps (B, ..., H, W) that are not zero; low is good.

    This is how the papers write it, :func:`complexity_l1` what their code computes.

    Returns:
        (B,) float64.
    """
    return (maps.flatten(1) != 0).double().mean(1)


def complexity_l1(maps: Tensor) -> Tensor:
    """Return the mean of maps (B, ..., H, W) in [0, 1], (B,) float64; low is good."""
    return maps.flatten(1).abs().double().mean(1)


def adcc(coherent: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    """Return the harmonic mean of coherency, 1 - complexity and 1 - drop; high is good.

    Of one image, or of the means of a data set: the two differ, and published tables are the
    latter. All three have one shape; 0 where one of the parts is 0.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import adcc
        >>> jafar = adcc(torch.tensor(0.914), torch.tensor(0.441), torch.tensor(0.174))
        >>> round(float(jafar), 3)  # the paper's table has 73.3
        0.733
    """
    parts = torch.stack([coherent, 1 - complexity, 1 - drop])
    return 3 / (1 / parts.clamp(min=0)).sum(0)


# -- scores of a data set ------------------------------------------------------------------------


class CamMetric(MeanMetric):
    """Scores of a data set of maps: means over its images.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import CamMetric
        >>> metric = CamMetric()
        >>> maps = torch.tensor([[[0.0, 1.0]]])
        >>> metric.add(torch.tensor([0.5]), torch.tensor([0.25]), maps, maps)
        >>> scores = metric.compute()
        >>> scores["average_drop"], scores["complexity_l0"], round(scores["adcc_l0"], 3)
        (0.5, 0.5, 0.6)
    """

    NAMES = (
        *("average_drop", "average_increase", "average_gain", "coherency"),
        *("complexity_l0", "complexity_l1", "adcc_l0_per_image", "adcc_l1_per_image"),
    )

    def __init__(self) -> None:
        super().__init__(self.NAMES)

    def add(self, full: Tensor, masked: Tensor, maps: Tensor, masked_maps: Tensor) -> None:
        """Add some images.

        Args:
            full: (B,) probability y of each image's class.
            masked: (B,) probability o of that class for the masked image.
            maps: (B, H, W) in [0, 1].
            masked_maps: (B, H, W), the maps of the masked images for the same classes.
        """
        self.add_scores(self.score(full, masked, maps, masked_maps))

    @classmethod
    def score(cls, full: Tensor, masked: Tensor, maps: Tensor, masked_maps: Tensor) -> Tensor:
        """Return the scores of each image, (B, ``len(NAMES)``) float64; arguments as ``add``."""
        full, masked = full.double(), masked.double()
        drop, alike = average_drop(full, masked), coherency(maps, masked_maps)
        dense, heavy = complexity_l0(maps), complexity_l1(maps)
        columns = (
            *(drop, average_increase(full, masked), average_gain(full, masked), alike),
            *(dense, heavy, adcc(alike, dense, drop), adcc(alike, heavy, drop)),
        )
        return torch.stack(columns, dim=1)

    def compute(self) -> dict[str, float]:
        """Return the means over the images, NaN without any.

        ``adcc_l0`` and ``adcc_l1``: ADCC of the means, with either complexity, as published
        tables have it. ``adcc_l0_per_image`` and ``adcc_l1_per_image``: mean of the ADCC of each
        image.
        """
        means = super().compute()
        for norm in ("l0", "l1"):
            parts = (means[name] for name in ("coherency", f"complexity_{norm}", "average_drop"))
            score = adcc(*(torch.tensor(part, dtype=torch.float64) for part in parts))
            means[f"adcc_{norm}"] = float(score)
        return means
