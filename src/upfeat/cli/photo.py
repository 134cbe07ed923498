"""One photo, its features and several upsamplers: what the commands that answer questions share."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat.cli.eval import load_networks
from upfeat.cli.options import parse_size

if TYPE_CHECKING:
    from torch import Tensor

    from upfeat.evaluation.methods import Method
    from upfeat.pipeline import Encoded, Pipeline

__all__ = ["PhotoFeatures"]


class PhotoFeatures:
    """A photo's features and the methods that upsample them, low-res among these.

    Args:
        pixels: (3, H, W) in [0, 1].
        input_size: as ``--input-size``; None for the photo's own, its shorter side at most 448.
        output_size: as ``--size``; None for the input size.
        backbone, weights, upsamplers, device: as the options.
    """

    def __init__(
        self,
        pixels: "Tensor",
        input_size: str | None,
        output_size: str | None,
        backbone: str,
        weights: Path | None,
        upsamplers: str,
        device: str,
    ) -> None:
        import upfeat
        from upfeat.data.sizes import resolve_size
        from upfeat.evaluation.methods import LowRes
        from upfeat.viz.comparison import LARGEST_SIDE

        own = (pixels.shape[1], pixels.shape[2])
        wanted = parse_size(input_size, "--input-size") or (min(LARGEST_SIDE, *own))
        asked = parse_size(output_size, "--size")
        self.network, methods = load_networks(backbone, weights, upsamplers, device)
        if not any(isinstance(method, LowRes) for method in methods):
            methods.insert(0, LowRes())
        self.methods: list[Method] = methods
        options: dict[str, Any] = {"input_size": wanted, "fit": "resize"}
        self.pipe: Pipeline = upfeat.Pipeline(self.network, **options)
        self.encoded: Encoded = self.pipe.encode(pixels)
        seen = self.encoded.frame.input
        self.size = seen if asked is None else resolve_size(asked, own, "--size")

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON."""
        from upfeat.evaluation.results import describe_environment

        return {
            "backbone": self.pipe.identity,
            "input_size": self.encoded.frame.input,
            "output_size": self.size,
            "methods": [{"label": method.label, **method.identity} for method in self.methods],
            "environment": describe_environment(),
        }

    def note(self) -> str:
        """Say backbone and sizes in a line below the pictures."""
        seen, cells = self.encoded.frame.input, self.encoded.features.shape
        return (
            f"{self.network.name}: {cells[2]}x{cells[3]} cells of {cells[1]} channels, input "
            f"{seen[0]}x{seen[1]}, output {self.size[0]}x{self.size[1]}."
        )
