"""Results as a model card's ``model-index`` wants them."""

import math
from collections.abc import Iterable

from upfeat.evaluation.registry import titled_protocol
from upfeat.evaluation.results import Result
from upfeat.upsamplers.cards import TASK, CardScore

_TASKS = {"seg-probe": "image-segmentation", "depth-probe": "depth-estimation"}
_METRICS = {"miou": "mean_iou", "miou_labelled": "mean_iou"}  # names of the hub for ours


def card_scores(results: Iterable[Result], weights: str) -> list[CardScore]:
    """Return the score that ranks each result of one set of weights, given by its fingerprint.

    Example:
        >>> from upfeat.evaluation.card_scores import card_scores
        >>> from upfeat.evaluation.results import Result, Score
        >>> settings = {"data": "msrc", "upsampler": {"weights": "405f"}}
        >>> scores = {"miou": Score.of([76.4])}
        >>> result = Result(task="seg-probe", label="mine", settings=settings, scores=scores)
        >>> [(score.dataset, score.metric, score.value) for score in card_scores([result], "405f")]
        [('msrc', 'mean_iou', 76.4)]
        >>> card_scores([result], "another")
        []
    """
    found = []
    for result in results:
        method = result.settings.get("upsampler")
        if not isinstance(method, dict) or method.get("weights") != weights:
            continue
        protocol = titled_protocol(result.task)
        name = protocol.ranked_by(list(result.scores))
        if name is None or not math.isfinite(result.scores[name].mean):
            continue
        found.append(
            CardScore(
                task=_TASKS.get(result.task, TASK),
                protocol=_protocol_text(result),
                dataset=str(result.settings.get("data", "own data")),
                metric=_METRICS.get(name, name),
                name=protocol.kind(name).column(result.unit),
                value=round(result.scores[name].mean, 2),
            )
        )
    return found


def _protocol_text(result: Result) -> str:
    """Return how a result was made, in words."""
    preset, backbone = result.settings.get("preset"), result.settings.get("backbone")
    parts = [f"upfeat eval {result.task}", *([f"--preset {preset}"] if preset else [])]
    name = backbone.get("name") if isinstance(backbone, dict) else None
    return " ".join(parts) + (f", features of {name}" if name else "")
