"""A colour ramp for pictures of weights and distances."""

import torch
from torch import Tensor

__all__ = ["heat_colors"]

# Black, violet, red, orange, pale yellow: lightness rises all the way.
_STOPS = ((0, 0, 0), (78, 18, 110), (176, 44, 88), (240, 112, 32), (252, 236, 140))


def heat_colors(share: Tensor) -> Tensor:
    """Colour numbers from 0 (black) over violet, red and orange to 1 (pale yellow).

    Args:
        share: (H, W), clamped to [0, 1].

    Returns:
        (3, H, W) uint8 on the CPU.

    Example:
        >>> import torch
        >>> from upfeat.viz.heat import heat_colors
        >>> heat_colors(torch.tensor([[0.0, 0.25, 1.0]]))[:, 0].T.tolist()
        [[0, 0, 0], [78, 18, 110], [252, 236, 140]]
    """
    stops = torch.tensor(_STOPS, dtype=torch.float64)
    place = share.detach().to("cpu", torch.float64).clamp(0, 1) * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    colors = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])
    return colors.round().to(torch.uint8).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
