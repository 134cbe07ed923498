"""Open-vocabulary segmentation: classes are words, nothing is trained.

The presets are four methods with a file each: :mod:`~upfeat.evaluation.probes.maskclip`,
:mod:`~upfeat.evaluation.probes.proxyclip`, :mod:`~upfeat.evaluation.probes.radseg_run` and
:mod:`~upfeat.evaluation.probes.talk2dino_run`. The first two need CLIP's text space: a backbone
``clip/NAME``. JAFAR's published CLIP weights belong to a classifier without one; the recipe
``jafar_maskclip_paper`` trains them anew.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from upfeat.backbones import Backbone, create_backbone
from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.backbones.radio_backbone import LanguageAdaptor, RadioBackbone
from upfeat.data import SegmentationData, load_segmentation, segmentation_sets
from upfeat.data.own import FOLDER_SET
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import Method
from upfeat.evaluation.probes.maskclip import MaskClipConfig, MaskClipRun
from upfeat.evaluation.probes.open_vocabulary import Words, class_words, read_words
from upfeat.evaluation.probes.proxyclip import ProxyClipConfig, ProxyClipRun
from upfeat.evaluation.probes.radseg_run import RadSegConfig, RadSegRun
from upfeat.evaluation.probes.talk2dino import ProjectedText, TextProjection, read_text_projection
from upfeat.evaluation.probes.talk2dino_run import Talk2DinoConfig, Talk2DinoRun
from upfeat.evaluation.probes.word_runs import TASK, TextEncoder, WordsConfig, WordsRun
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    Request,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result

__all__ = [
    "PRESETS",
    "MaskClipConfig",
    "ProxyClipConfig",
    "RadSegConfig",
    "Talk2DinoConfig",
    "open_vocabulary_preset",
    "own_settings",
    "run_open_vocabulary",
]

CLIP = "clip/ViT-B-16.openai"


AnyConfig = MaskClipConfig | ProxyClipConfig | RadSegConfig | Talk2DinoConfig
_KINDS: dict[str, tuple[type[AnyConfig], type[WordsRun]]] = {
    "maskclip": (MaskClipConfig, MaskClipRun),
    "proxyclip": (ProxyClipConfig, ProxyClipRun),
    "radseg": (RadSegConfig, RadSegRun),
    "talk2dino": (Talk2DinoConfig, Talk2DinoRun),
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "maskclip": {
        "voc": {"background": "ignore"},
        "ade20k": {},
        "cityscapes": {},
        "coco_stuff_171": {},
    },
    "proxyclip": {
        "coco_stuff_171": {},
        "cityscapes": {"short_side": 448, "window": 224},
        "ade20k": {"short_side": 448},
        "voc": {"background": "threshold", "threshold": 0.2},
        "voc_20": {},
        "coco_object": {"background": "threshold", "threshold": 0.25},
        "context_60": {"background": "threshold", "threshold": 0.15},
        "context_59": {},
    },
    # The middle of the published resolutions.
    "radseg": {
        "ade20k": {},
        "cityscapes": {"short_side": 688},
        "coco_stuff_171": {"short_side": 448},
        "context_59": {"long_side": 4096},
        "voc_20": {"short_side": 336, "stride": 112},
    },
    "talk2dino": {
        "voc": {"background": "threshold", "threshold": 0.55},
        "context_60": {"background": "threshold", "threshold": 0.55},
        "coco_object": {"background": "threshold", "threshold": 0.55},
        "voc_20": {},
        "context_59": {},
        "coco_stuff_171": {},
        "cityscapes": {},
        "ade20k": {},
    },
}
# Sets that share the words of another, without its background.
_SAME_WORDS = {"voc_20": "voc", "context_59": "context_60"}
NO_TEXT_SPACE = (
    "{} has no text space; open-vocabulary wants a CLIP, such as clip/ViT-B-16.openai. JAFAR's "
    "published CLIP weights (jafar.clip_vitb16_384) belong to a classifier of 768 channels without "
    "one: train JAFAR for CLIP with upfeat train jafar_maskclip_paper"
)


def open_vocabulary_preset(preset: str, data: str, **changes: Any) -> AnyConfig:
    """Return the settings of a preset for a data set.

    With ``words=`` any labelled set will do, or one of the user's own (``reader="folder"``).

    Raises:
        UnknownNameError: no such preset or set.
        ValueError: an impossible value.

    Example:
        >>> from upfeat.evaluation.protocols.open_vocabulary import open_vocabulary_preset
        >>> open_vocabulary_preset("proxyclip", "msrc", words="names", window=224).short_side
        336
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    known = PRESETS[preset]
    own = changes.get("reader") or data in segmentation_sets()
    if data not in known and not (changes.get("words") and own):
        raise UnknownNameError("data set", data, known)
    settings: dict[str, Any] = {"preset": preset, "data": data} | known.get(data, {}) | changes
    return _KINDS[preset][0](**settings)


def run_open_vocabulary(
    config: AnyConfig,
    val: SegmentationData,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    out: str | Path,
    cache: str | Path,
    clip: Backbone | None = None,
    projection: TextProjection | None = None,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Segment a validation split by words, see :attr:`Protocol.run`.

    ``backbone`` is whose features are upsampled: CLIP (``maskclip``), the proxy (``proxyclip``),
    RADIO with an adaptor (``radseg``) or DINOv2 (``talk2dino``). ``clip`` is that of presets
    ``proxyclip`` and ``talk2dino``; None for the backbone itself if it is one, else for
    ``clip/ViT-B-16.openai``. ``projection`` is that of ``talk2dino``. The cache also keeps the
    words' embeddings, and how far an interrupted run came.

    Raises:
        UnsupportedError: the backbone, or ``clip``, has no text space, or ``clip`` has no use.
        ValueError: words and classes differ in number, or a method or the projection does not fit.
    """
    encoder: TextEncoder
    if config.preset == "radseg":
        encoder = _radseg_encoder(backbone, clip)
    else:
        encoder = _clip_encoder(config, backbone, clip)
    if isinstance(encoder, ClipBackbone) and config.preset == "talk2dino":
        encoder = ProjectedText(encoder, _checked(projection, encoder, backbone))
    _check_background(config, val)
    val = without_background(val) if config.background == "ignore" else val
    val = val.select(limit=config.limit)
    words = words_of(config, val)
    kind: Any = _KINDS[config.preset][1]
    own = () if config.preset == "maskclip" else (backbone,)
    run: WordsRun = kind(
        config, Path(out), on_progress or silent, val, encoder, words, Path(cache), *own
    )
    return run.run(methods)


def _clip_encoder(config: AnyConfig, backbone: Backbone, clip: Backbone | None) -> ClipBackbone:
    """Return the CLIP that knows the words."""
    judge = backbone if clip is None else clip
    if config.preset != "maskclip" and not isinstance(judge, ClipBackbone) and clip is None:
        device = next((weight.device for weight in backbone.parameters()), None)
        judge = create_backbone(CLIP).to(device)
    if not isinstance(judge, ClipBackbone) or not judge.project:
        raise UnsupportedError(NO_TEXT_SPACE.format(judge.name))
    return judge


def _checked(
    projection: TextProjection | None, clip: ClipBackbone, backbone: Backbone
) -> TextProjection:
    """Return a projection that leads from CLIP's texts to the backbone's features."""
    if projection is None:
        raise ValueError(
            "preset talk2dino needs the weights of its projection: --projection FILE, such as "
            "vitb_mlp_infonce.pth of github.com/lorebianchi98/Talk2DINO"
        )
    dim, text_dim = projection.linear_layer.weight.shape
    if (text_dim, dim) != (clip.dim, backbone.dim):
        raise ValueError(
            f"the projection leads from {text_dim} to {dim} channels; {clip.name} has {clip.dim} "
            f"and {backbone.name} {backbone.dim}: give the file that belongs to both"
        )
    return projection.to(next(clip.parameters()))


def _radseg_encoder(backbone: Backbone, clip: Backbone | None) -> LanguageAdaptor:
    """Return the adaptor that knows the words."""
    if clip is not None:
        raise UnsupportedError(
            f"preset radseg takes the words from RADIO's adaptor, not from {clip.name}; leave out "
            "--clip"
        )
    if not isinstance(backbone, RadioBackbone) or backbone.language is None:
        raise UnsupportedError(
            f"{backbone.name} has no adaptor for words; preset radseg wants RADIO with one: "
            "radio/c-radio_v3-b(repository='FOLDER', adaptor='siglip2'), FOLDER being a copy of "
            "github.com/NVlabs/RADIO"
        )
    return backbone.language


def _check_background(config: WordsConfig, data: SegmentationData) -> None:
    if config.background is not None and data.classes[0] != "background":
        raise ValueError(
            f"{data.name} has no background: its class 0 is {data.classes[0]!r}; leave out "
            f"background={config.background}"
        )
    if config.threshold and config.background != "threshold":
        raise ValueError(
            f"threshold={config.threshold} needs background=threshold, got {config.background}"
        )


def without_background(data: SegmentationData) -> SegmentationData:
    """Return a labelled set whose class 0 is ignored and whose other classes move down by one."""
    ignored = data.ignore_index
    table = data.table or {number: number for number in (*range(len(data.classes)), ignored)}
    moved = {number: cls - 1 for number, cls in table.items() if cls not in (0, ignored)}
    moved |= {number: ignored for number, cls in table.items() if cls in (0, ignored)}
    return replace(data, classes=data.classes[1:], table=dict(sorted(moved.items())))


def words_of(config: AnyConfig, data: SegmentationData) -> Words:
    """Return the words of each class of a set, after the settings.

    Raises:
        ValueError: a class has none, or there are more or fewer lines than classes.
    """
    if config.words == "names":
        words: Words = tuple((name,) for name in data.classes)
    elif config.words:
        words = read_words(config.words)
    else:
        words = class_words(config.preset, _SAME_WORDS.get(config.data, config.data))
        if len(words) == len(data.classes) + 1:
            words = words[1:]
    if len(words) != len(data.classes):
        raise ValueError(
            f"{config.words or config.preset} has words for {len(words)} classes, {data.name} has "
            f"{len(data.classes)}: {', '.join(data.classes)}"
        )
    fitless = isinstance(config, MaskClipConfig | Talk2DinoConfig)
    if config.background == "threshold" and fitless:
        words = ((), *words[1:])  # the background is where no word fits
    return words


def own_settings(preset: str, root: Path) -> dict[str, Any]:
    """Return the settings for a folder of the user's own: its classes' names are the words."""
    return {"words": "names"}


def _inputs(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = {
        "val": load_segmentation(str(request.data), request.root, "val"),
        "cache": request.cache,
    }
    if (spec := request.options["clip"]) is not None:
        weights = request.options["clip_weights"]
        found["clip"] = create_backbone(spec, weights=weights).to(request.device)
    if (file := request.options["projection"]) is not None:
        found["projection"] = read_text_projection(file)
    return found


register_protocol(
    Protocol(
        name=TASK,
        title="Open-vocabulary segmentation",
        summary="Segment by words, with CLIP's text embeddings as the head.",
        scores={
            "miou": higher("mIoU"),
            "miou_labelled": higher("mIoU labelled"),
            "accuracy": higher("accuracy"),
        },
        headline=("miou",),
        columns=("miou", "accuracy"),
        configure=open_vocabulary_preset,
        presets=tuple(PRESETS),
        data=(*dict.fromkeys(name for sets in PRESETS.values() for name in sets), FOLDER_SET),
        own_settings=own_settings,
        inputs=_inputs,
        run=run_open_vocabulary,
        items="images",
        options=(
            Option("clip", f"CLIP of presets proxyclip and talk2dino. Default: {CLIP}."),
            Option("clip_weights", "Weight file of --clip.", kind="path"),
            Option("projection", "Weights of Talk2DINO's projection.", kind="path"),
        ),
    )
)
