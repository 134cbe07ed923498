"""Model cards: the ``README.md`` of a saved model, written and checked.

A card begins with front matter in YAML between two lines ``---``, which the Hugging Face hub reads;
then comes Markdown.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfeat.checkpoints import read_config
from upfeat.errors import CheckpointError, UnknownNameError

if TYPE_CHECKING:
    from upfeat.upsamplers.saving import SavedModel
    from upfeat.upsamplers.weights import TrainedFor

__all__ = [
    "LICENCE_IDS",
    "CardScore",
    "card_faults",
    "card_for",
    "check_licence",
    "hub_id",
    "licence_id",
    "split_card",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

LIBRARY = "upfeat"
TASK = "image-feature-extraction"
TAG = "feature-upsampling"
UNKNOWN = "unknown"
# Fields that say what upfeat knows of a model; further ones are their author's.
OWN_FIELDS = (
    *("library_name", "pipeline_tag", "license", "license_name", "base_model", "tags"),
    *("metrics", "model-index"),
)
# Stands in a card for where the model is loaded from, until it is pushed.
PLACE = "this folder or repository"

_LICENCES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other
pddl postgresql unknown unlicense wtfpl zlib
"""
LICENCE_IDS = frozenset(_LICENCES.split())
"""Identifiers of licences that the hub knows."""

# Tasks of the hub that features of images serve.
TASKS = (
    TASK,
    *("depth-estimation", "feature-extraction", "image-classification", "image-segmentation"),
    *("image-to-image", "keypoint-detection", "mask-generation", "object-detection"),
    *("video-classification", "zero-shot-image-classification", "zero-shot-object-detection"),
)
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FRONT = re.compile(r"---\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class CardScore:
    """One number of a card's ``model-index``.

    Attributes:
        task: of the hub, such as ``"image-segmentation"``.
        protocol: how it was measured, in words.
        dataset: name of the data.
        metric: identifier, such as ``"mean_iou"``.
        name: of the metric, in words.
        value: the number.
    """

    task: str
    protocol: str
    dataset: str
    metric: str
    name: str
    value: float


# -- licences and ids ------------------------------------------------------------------------------


def check_licence(name: str) -> str:
    """Return the identifier of a licence in the hub's spelling.

    Raises:
        UnknownNameError: the hub knows no such identifier; the message lists close ones.
    """
    known = name.strip().lower()
    if known not in LICENCE_IDS:
        raise UnknownNameError("licence", name, LICENCE_IDS)
    return known


def licence_id(text: str | None) -> str:
    """Return the identifier that words about a licence begin with, ``other`` or ``unknown``."""
    if text is None or text.startswith("not "):
        return UNKNOWN
    first = (text.lower().split() or [UNKNOWN])[0].strip(",;")
    return first if first in LICENCE_IDS else "other"


def hub_id(backbone: str) -> str | None:
    """Return the repository of a backbone's weights on the hub, where its name tells."""
    name = backbone.partition("+")[0]
    tagged = name.startswith("timm/") and "." in name
    return name if tagged and _REPOSITORY.fullmatch(name) else None


# -- writing ---------------------------------------------------------------------------------------


def card_for(
    model: "SavedModel",
    backbone: "TrainedFor | None",
    text: str | None = None,
    scores: Sequence[CardScore] = (),
    fields: Mapping[str, Any] | None = None,
) -> str:
    """Return a card with front matter that says what is known of a model.

    Args:
        model: the model.
        backbone: what its weights were trained for; None if any will do or none is known.
        text: the card's Markdown; front matter of its own is kept, and what it lacks is added.
            None stands for a text made of the model's configuration.
        scores: numbers of the model.
        fields: of the front matter, before all others.

    Example:
        >>> import upfeat
        >>> from upfeat.upsamplers.cards import card_for, split_card
        >>> card = card_for(upfeat.create_upsampler("kin.upfeat"), None)
        >>> front, text = split_card(card)
        >>> front["library_name"], front["license"], text.splitlines()[0]
        ('upfeat', 'apache-2.0', '# kin')
    """
    import yaml

    own, body = split_card(text) if text is not None else ({}, _card_text(model, backbone))
    front = _front_matter(model, backbone, scores) | own | dict(fields or {})
    written = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{written}---\n\n{body.lstrip()}"


def _front_matter(
    model: "SavedModel", backbone: "TrainedFor | None", scores: Sequence[CardScore]
) -> dict[str, Any]:
    info = model.info
    licence = licence_id(info.weights_license)
    front: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": TASK, "license": licence}
    if licence == "other":
        name = re.sub(r"[^a-z0-9.]+", "-", str(info.weights_license).lower()).strip("-")
        front["license_name"] = name
    base = None if backbone is None else hub_id(backbone.name)
    if base is not None:
        front["base_model"] = base
    front["tags"] = [TAG, info.name, *([f"arxiv:{info.arxiv}"] if info.arxiv else [])]
    if scores:
        front["metrics"] = list(dict.fromkeys(score.metric for score in scores))
        front["model-index"] = [{"name": info.name, "results": _model_index(scores)}]
    return front


def _model_index(scores: Sequence[CardScore]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, str, str], list[CardScore]] = {}
    for score in scores:
        grouped.setdefault((score.task, score.protocol, score.dataset), []).append(score)
    return [
        {
            "task": {"type": task, "name": protocol},
            "dataset": {"type": data, "name": data},
            "metrics": [{"type": s.metric, "name": s.name, "value": s.value} for s in group],
        }
        for (task, protocol, data), group in grouped.items()
    ]


def _card_text(model: "SavedModel", backbone: "TrainedFor | None") -> str:
    """Say what a model is, how to load it, and under which licences."""
    info = model.info
    arxiv = f"arXiv {info.arxiv}" if info.arxiv else "no paper"
    parameters = sum(p.numel() for p in model.parameters())
    licence = info.weights_license
    stated = f"* licence of these weights: {licence}\n" if licence else ""
    return (
        f"# {info.name}\n\n{info.summary}\n\n"
        f"* paper: {info.paper or 'none'} ({arxiv})\n"
        f"* parameters: {parameters:,}\n"
        f"* configuration: `{json.dumps(model.config)}`\n"
        f"* backbone: {'not named' if backbone is None else f'`{backbone.name}`'}\n"
        f"* licence of the original code: {info.code_license or 'none'}\n"
        f"{stated}\n"
        "```python\nimport upfeat\n\n"
        f'upsampler = upfeat.Upsampler.from_pretrained("{PLACE}")\n```\n'
    )


# -- reading ---------------------------------------------------------------------------------------


def split_card(text: str) -> tuple[dict[str, Any], str]:
    r"""Split a card into its front matter and its Markdown; without front matter, {} and all.

    Raises:
        CheckpointError: the front matter is no YAML, or no mapping.

    Example:
        >>> from upfeat.upsamplers.cards import split_card
        >>> split_card("---\nlicense: mit\n---\n# A model\n")
        ({'license': 'mit'}, '# A model\n')
    """
    import yaml

    text = text.replace("\r\n", "\n")
    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        front = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the front matter is no valid YAML: {reason}") from error
    if not isinstance(front, dict):
        raise CheckpointError(
            f"the front matter holds a {type(front).__name__}, expected lines such as license: mit"
        )
    return front, text[match.end() :].lstrip()


def card_faults(folder: Path) -> list[str]:
    """Check the card of a saved model and the files that belong to it.

    Args:
        folder: of ``save_pretrained``, or a copy of a repository.

    Returns:
        A sentence for each fault; none for a card that says all it must.
    """
    missing = [n for n in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE) if not (folder / n).is_file()]
    faults = [f"{name} is missing; save_pretrained writes it" for name in missing]
    if CARD_FILE in missing:
        return faults
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
        front, body = split_card(text)
    except (CheckpointError, UnicodeDecodeError) as error:
        return [*faults, f"{CARD_FILE}: {error}"]
    if not front:
        advice = "upfeat card FOLDER --write adds it"
        return [*faults, f"{CARD_FILE} has no front matter (YAML between two lines ---); {advice}"]
    found = [*_front_faults(front), *_link_faults(body, folder)]
    if CONFIG_FILE not in missing:
        found += _config_faults(front, folder / CONFIG_FILE)
    return faults + [f"{CARD_FILE}: {fault}" for fault in found]


def _front_faults(front: Mapping[str, Any]) -> Iterator[str]:
    library = front.get("library_name")
    if library != LIBRARY:
        yield f"library_name is {_said(library)}, expected {LIBRARY}"
    licence = front.get("license")
    if licence is None:
        yield f"license is missing; name one of the hub's ids, such as apache-2.0, or {UNKNOWN}"
    elif str(licence) not in LICENCE_IDS:
        yield f"license {licence!r} is none of the hub's ids{_close(licence, LICENCE_IDS)}"
    elif licence == "other" and not front.get("license_name"):
        yield "license is other, which needs license_name beside it"
    task = front.get("pipeline_tag")
    if task is None:
        yield f"pipeline_tag is missing; expected {TASK}"
    elif task not in TASKS:
        yield f"pipeline_tag {task!r} is no task that features serve{_close(task, TASKS)}"
    tags = front.get("tags")
    if not isinstance(tags, list) or TAG not in tags:
        yield f"tags are {_said(tags)}, expected a list with {TAG}"
    bases = front.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not _REPOSITORY.fullmatch(base):
            yield f"base_model {base!r} is no id of a repository, expected OWNER/NAME"
    metrics = front.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        yield f"metrics are {metrics!r}, expected a list of names such as mean_iou"
    yield from _index_faults(front.get("model-index", []))


def _index_faults(index: object) -> Iterator[str]:
    """Check what the hub wants of each result in ``model-index``."""
    models = index if isinstance(index, list) else [index]
    for model in models:
        if not isinstance(model, dict) or not isinstance(model.get("results"), list):
            yield "model-index needs a name and a list of results for each model"
            continue
        for number, result in enumerate(model["results"], 1):
            for part, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
                held = result.get(part) if isinstance(result, dict) else None
                lacking = [k for k in keys if not (isinstance(held, dict) and held.get(k))]
                if lacking:
                    yield f"result {number} of model-index has no {part}.{lacking[0]}"
            measured = result.get("metrics") if isinstance(result, dict) else None
            for metric in measured if isinstance(measured, list) and measured else [None]:
                if not isinstance(metric, dict) or not {"type", "value"} <= metric.keys():
                    yield f"result {number} of model-index has a metric without type or value"


def _link_faults(body: str, folder: Path) -> Iterator[str]:
    for target in dict.fromkeys(_LINK.findall(body)):
        local = target.partition("#")[0]
        if local and ":" not in local and not (folder / local).exists():
            yield f"it names {local}, which is not in the folder"


def _config_faults(front: Mapping[str, Any], file: Path) -> Iterator[str]:
    """Compare a card with the configuration beside it."""
    try:
        config = read_config(file)
    except CheckpointError as error:
        yield f"it stands beside a broken configuration: {error}"
        return
    backbone = config.get("backbone")
    base = hub_id(str(backbone.get("name"))) if isinstance(backbone, dict) else None
    said = front.get("base_model")
    if base is not None and base not in (said if isinstance(said, list) else [said]):
        yield f"base_model is {_said(said)}, and {file.name} says {base}"
    stated = config.get("weights_license")
    licence = licence_id(stated) if isinstance(stated, str | None) else UNKNOWN
    told = str(front.get("license"))
    if told in LICENCE_IDS and UNKNOWN not in (licence, told) and licence != told:
        yield f"license is {told}, and {file.name} says {stated}"


def _said(value: object) -> str:
    return "missing" if value is None else repr(value)


def _close(name: object, known: Sequence[str] | frozenset[str]) -> str:
    close = difflib.get_close_matches(str(name).lower(), sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
