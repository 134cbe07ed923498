"""Open-vocabulary segmentation: classes are words, nothing is trained.

Preset ``maskclip`` (JAFAR, arXiv 2506.11136, table 3): CLIP's patch tokens in the text space,
upsampled to the image, take the class of the nearest word. The words' embeddings are a linear head,
so that a method that mixes values upsamples one channel a word.

Preset ``proxyclip`` (LoftUp, arXiv 2504.14032, table 4; M. Lan et al., arXiv 2408.04883): the
backbone is the proxy. Its upsampled features give the weights that mix CLIP's values of the last
block, in overlapping windows; the mixed values are compared with the words.

Preset ``radseg`` (O. Alama et al., arXiv 2511.19704; the task that PixelUp reports): RADIO's last
block attends by itself, in windows; the stitched map is upsampled, and the head of an adaptor
brings it to the words. The backbone is a RADIO with an adaptor.

Preset ``talk2dino`` (L. Barsellotti et al., arXiv 2411.19331; the task that ViT-Up shows): CLIP's
words are projected among DINOv2's features, which are upsampled in windows.

The first two need CLIP's text space: a backbone ``clip/NAME``. JAFAR's published CLIP weights
belong to a classifier without one; the recipe ``jafar_maskclip_paper`` trains them anew.

Legend: ``C`` channels of features, ``W`` words, ``K`` classes, ``h w`` feature grid, ``H W`` image.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from safetensors.torch import load_file
from torch import Tensor

from upfeat.backbones import Backbone, create_backbone
from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.backbones.radio_backbone import LanguageAdaptor, RadioBackbone
from upfeat.checkpoints import write_safetensors
from upfeat.data import SegmentationData, load_segmentation, segmentation_sets
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.own import FOLDER_SET
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.data.transforms import resize_and_crop
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.metrics import SegmentationMetric
from upfeat.evaluation.probes.open_vocabulary import (
    Words,
    class_words,
    denoise_words,
    proxy_attention,
    read_words,
    slide,
    smooth_by_keys,
)
from upfeat.evaluation.probes.parts import mean_class_ious
from upfeat.evaluation.probes.radseg import RadSegFeatures, certain_classes, radseg_size
from upfeat.evaluation.probes.talk2dino import (
    ProjectedText,
    TextProjection,
    read_text_projection,
    word_masks,
)
from upfeat.evaluation.registry import (
    Option,
    Progress,
    Protocol,
    ProtocolConfig,
    Request,
    higher,
    register_protocol,
    silent,
)
from upfeat.evaluation.results import Result
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
from upfeat.ops.images import normalize, resize_bilinear
from upfeat.pipeline import Encoded, Pipeline
from upfeat.similarity.maps import (
    CLIP_SCALE,
    average_prompts,
    classes_of_words,
    cosine_maps,
    embed_words,
    segment_words,
    templates,
    word_classes,
)

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

TASK = "open-vocabulary"
CLIP = "clip/ViT-B-16.openai"
SAVE_EVERY = 20  # images between two notes of how far a method is
LONGEST = 2048  # side of an image before its windows are cut
Background = Literal["word", "ignore", "threshold"]
TextEncoder = ClipBackbone | LanguageAdaptor | ProjectedText


class WordsConfig(ProtocolConfig):
    """Settings of words and background, common to all presets.

    Attributes:
        words: empty for the preset's own of the data set; ``names`` for the data set's names of
            its classes; else a text file with a class a line, its words with commas between them.
        templates: ``clip`` for CLIP's 80, ``maskclip`` for those and five more, ``talk2dino`` for
            its seven.
        background: of a set whose class 0 is the background: ``word`` has it compete by its words,
            ``ignore`` leaves its pixels out, ``threshold`` puts pixels there whose best word is
            improbable. None for a set without.
        threshold: of that probability.
    """

    words: str = ""
    templates: Literal["clip", "maskclip", "talk2dino"] = "clip"
    background: Background | None = None
    threshold: float = Field(default=0.0, ge=0, lt=1)


class MaskClipConfig(WordsConfig):
    """Settings of preset ``maskclip``; all of them stand in the result.

    Attributes:
        crop_size: images are resized to this short side and cropped to a square of it.
        prompt_denoising: probability that a word must reach somewhere in the image to stay; None
            for no such rule (MaskCLIP's option).
        key_smoothing: probability below which a cell takes those of cells with similar keys; None
            for no such rule (MaskCLIP's option).
    """

    preset: Literal["maskclip"] = "maskclip"
    templates: Literal["clip", "maskclip", "talk2dino"] = "maskclip"
    crop_size: PositiveInt = 448
    prompt_denoising: float | None = Field(default=None, gt=0, le=1)
    key_smoothing: float | None = Field(default=None, gt=0, le=1)


class ProxyClipConfig(WordsConfig):
    """Settings of preset ``proxyclip``; all of them stand in the result.

    Attributes:
        short_side: to which images are resized, the long side to at most 2048.
        window, stride: of the windows, in pixels of the resized image.
        factor: the proxy's features are upsampled to so many times a grid.
        grid: which: the proxy's own or CLIP's.
        beta, gamma: of the attention, see
            :func:`upfeat.evaluation.probes.open_vocabulary.proxy_attention`.
        logit_scale: of the cosines in the softmax over the words.
    """

    preset: Literal["proxyclip"] = "proxyclip"
    short_side: PositiveInt = 336
    window: PositiveInt = 336
    stride: PositiveInt = 112
    factor: PositiveInt = 8
    grid: Literal["proxy", "clip"] = "proxy"
    beta: float = 1.2
    gamma: PositiveFloat = 3.0
    logit_scale: PositiveFloat = 40.0


class RadSegConfig(WordsConfig):
    """Settings of preset ``radseg``; all of them stand in the result.

    Attributes:
        short_side, long_side: to which images are resized, the long side at most.
        window, stride: of the windows, see :class:`upfeat.evaluation.probes.radseg.RadSegFeatures`.
        factor: the stitched map is upsampled to so many times its grid. Neither RADSeg nor PixelUp
            says; 16 is the size of the resized image.
        prompt_denoising: probability that a class must reach somewhere in the image to stay.
    """

    preset: Literal["radseg"] = "radseg"
    words: str = "names"
    short_side: PositiveInt = 576
    long_side: PositiveInt = 2048
    window: PositiveInt = 336
    stride: PositiveInt = 224
    factor: PositiveInt = 16
    prompt_denoising: float = Field(default=0.5, ge=0, le=1)


class Talk2DinoConfig(WordsConfig):
    """Settings of preset ``talk2dino``; all of them stand in the result.

    Its cleaning of the background and its refinement by PAMR are not built.

    Attributes:
        short_side: to which images are resized, the long side to at most 2048.
        window, stride: of the windows, in pixels of the resized image.
        factor: the features are upsampled to so many times their grid. Not stated by ViT-Up; 14 is
            the size of the window for patches of 14.
    """

    preset: Literal["talk2dino"] = "talk2dino"
    words: str = "names"
    templates: Literal["clip", "maskclip", "talk2dino"] = "talk2dino"
    short_side: PositiveInt = 448
    window: PositiveInt = 448
    stride: PositiveInt = 224
    factor: PositiveInt = 14


AnyConfig = MaskClipConfig | ProxyClipConfig | RadSegConfig | Talk2DinoConfig
_KINDS: dict[str, type[AnyConfig]] = {
    "maskclip": MaskClipConfig,
    "proxyclip": ProxyClipConfig,
    "radseg": RadSegConfig,
    "talk2dino": Talk2DinoConfig,
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
    return _KINDS[preset](**settings)


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
    kind: Any = _RUNS[config.preset]
    own = () if config.preset == "maskclip" else (backbone,)
    run: _Run = kind(
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


@dataclass(eq=False)
class _Run(ProtocolRun):
    """One preset on one split."""

    task = TASK

    val: SegmentationData
    clip: TextEncoder
    words: Words
    cache: Path

    def __post_init__(self) -> None:
        clip, words = self.clip, self.words
        weights = weights_fingerprint(clip.state_dict())
        self.text = embed_words(
            clip.encode_text,
            [word for each in words for word in each],
            templates(self.config.templates),
            cache=self.cache / "words",
            encoder=weights,
            finish=self.finish,
        ).to(next(clip.parameters()))  # (W, C)
        self.classes = word_classes([len(each) for each in words]).to(self.text.device)
        self.facts = {
            "splits": described_splits(self.val),
            "clip": {"name": clip.name, "weights": weights},
            "words": [list(each) for each in words],
        }

    def finish(self, embeddings: Tensor) -> Tensor:
        """Make a unit vector of each word's embeddings (W, T, C)."""
        return average_prompts(embeddings)

    @property
    def threshold(self) -> float:
        """Of the words' probability, below which a pixel is background; 0 for no such rule."""
        config = self.config
        return float(config.threshold) if config.background == "threshold" else 0.0

    @abstractmethod
    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) in [0, 1] and its label."""

    @abstractmethod
    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        """Return the classes (H, W) of an image at the size of its label."""

    def measure(self, pending: Pending) -> Measured:
        """Score a method on all images, from where an interrupted run stopped."""
        metric = SegmentationMetric(len(self.val.classes), self.val.ignore_index)
        kept = pending.temporary(self.cache / TASK / f"{pending.path.stem}.safetensors")
        done = 0
        if kept.is_file():
            state = load_file(kept)
            metric.matrix += state["matrix"]
            done = int(state["images"])
        for number, file in enumerate(self.val.files):
            self.on_progress(pending.method.label, "segmenting", number, len(self.val))
            if number < done:
                continue
            image, label = self.read(file)
            with torch.no_grad():
                size = (label.shape[0], label.shape[1])
                predicted = self.predict(pending.method, image, size)
            metric.add(predicted.cpu(), label)
            if (number + 1) % SAVE_EVERY == 0:
                kept.parent.mkdir(parents=True, exist_ok=True)
                count = torch.tensor(number + 1)
                write_safetensors(kept, {"matrix": metric.matrix, "images": count})
        ious = mean_class_ious(self.val.classes, [metric])
        return seed_scores([metric.compute()]), {"iou_per_class": ious}


@dataclass(eq=False)
class _MaskClip(_Run):
    """CLIP's own map, upsampled."""

    config: MaskClipConfig
    clip: ClipBackbone

    def __post_init__(self) -> None:
        super().__post_init__()
        side, features = self.config.crop_size, self.cache / "features"
        self.pipe = Pipeline(self.clip, input_size=(side, side), fit="exact", cache=features)
        self.refines = bool(self.config.prompt_denoising or self.config.key_smoothing)
        self.facts |= {
            "backbone": self.pipe.identity,
            "image_resize": "short side (bilinear, antialiased; labels nearest), centre crop",
            "logits": "the head after or before the upsampler, whichever is the same for less",
        }

    def settings(self, method: Method) -> dict[str, Any]:
        """Refuse a method that the settings do not fit, else return what decides the numbers."""
        if self.refines and not method.upsampler.info.abilities.linear:
            raise ValueError(
                f"prompt_denoising and key_smoothing change the words' maps before they are "
                f"upsampled, which {method.label} cannot do: it does not mix values linearly"
            )
        return super().settings(method)

    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        image, label = self.val.read(file)
        return resize_and_crop(image, label, self.config.crop_size)

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        encoded, pipe = self.pipe.encode(image), method.on(self.pipe)
        head = self.refinement(encoded) if self.refines else None
        return segment_words(
            pipe, encoded, size, self.text, self.classes, threshold=self.threshold, head=head
        )

    def refinement(self, encoded: Encoded) -> Callable[[Tensor], Tensor]:
        """Return the map from features to cosines with MaskCLIP's refinements."""

        def refined(features: Tensor) -> Tensor:
            logits = cosine_maps(features, self.text)
            if self.config.prompt_denoising:
                logits = denoise_words(logits, self.config.prompt_denoising)
            if self.config.key_smoothing:
                pixels = normalize(encoded.prepared, self.clip.image_mean, self.clip.image_std)
                keys = self.clip.last_keys(pixels)
                logits = smooth_by_keys(logits, keys, self.config.key_smoothing)
            return logits

        return refined


@dataclass(eq=False)
class _ProxyClip(_Run):
    """CLIP's values, mixed by the proxy's upsampled features."""

    config: ProxyClipConfig
    clip: ClipBackbone

    proxy: Backbone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pipe = Pipeline(self.proxy, fit="exact", cache=self.cache / "features")
        # 56 is the original's, for patches of 8 and 14.
        self.multiple = math.lcm(56, self.proxy.size_multiple)
        self.facts |= {
            "backbone": self.pipe.identity,
            "image_resize": f"short side (bilinear), long side at most {LONGEST}",
            "window_multiple": self.multiple,
        }

    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        image, label = self.val.read(file)
        return _resized(image, self.config.short_side, LONGEST), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        config = self.config
        logits = slide(
            image[None].to(self.text.device),
            lambda window: self.logits(method, window.clamp(0, 1)),  # padding rounds
            window=config.window,
            stride=config.stride,
            multiple=self.multiple,
            padding=torch.tensor(self.clip.image_mean),
        )
        logits = resize_bilinear(logits, size)
        return classes_of_words(
            logits, self.classes, scale=config.logit_scale, threshold=self.threshold
        )[0]

    def logits(self, method: Method, window: Tensor) -> Tensor:
        """Return cosines (1, W, s, t) of a window (1, 3, s, t) in [0, 1]."""
        values = self.clip.last_values(normalize(window, self.clip.image_mean, self.clip.image_std))
        encoded = self.pipe.encode(window)
        grid = encoded.features if self.config.grid == "proxy" else values
        size = tuple(self.config.factor * side for side in grid.shape[-2:])
        if isinstance(method, LowRes):
            proxy = encoded.features
        else:
            proxy = method.on(self.pipe).upsample(encoded, (size[0], size[1]))
        mixed = proxy_attention(proxy, values, beta=self.config.beta, gamma=self.config.gamma)
        logits = cosine_maps(self.clip.into_text_space(mixed), self.text)
        return resize_bilinear(logits, (window.shape[2], window.shape[3]))


def _resized(image: Tensor, short_side: int, longest: int) -> Tensor:
    """Return an image (3, H, W) with this short side, or the longest long side if that is less."""
    height, width = image.shape[-2:]
    factor = min(short_side / min(height, width), longest / max(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    return resize_bilinear(image[None], size)[0].clamp(0, 1)


@dataclass(eq=False)
class _RadSeg(_Run):
    """RADIO's stitched map, upsampled, then brought to the words by the adaptor's head."""

    config: RadSegConfig
    clip: LanguageAdaptor

    radio: RadioBackbone

    def __post_init__(self) -> None:
        super().__post_init__()
        window, stride = self.config.window, self.config.stride
        features = RadSegFeatures(self.radio, window=window, stride=stride)
        self.pipe = Pipeline(features, fit="exact", cache=self.cache / "features")
        self.facts |= {
            "backbone": self.pipe.identity,
            "image_resize": "short side (bilinear), then sides to multiples of the stride",
        }

    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        image, label = self.val.read(file)
        image = _resized(image, self.config.short_side, self.config.long_side)
        own = (image.shape[1], image.shape[2])
        size = radseg_size(own, self.config.window, self.config.stride)
        return resize_bilinear(image[None], size)[0].clamp(0, 1), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        encoded, config = self.pipe.encode(image), self.config
        factor = 1 if isinstance(method, LowRes) else config.factor
        height, width = (factor * side for side in encoded.features.shape[-2:])
        probabilities = self.text.new_empty(1, len(self.text), height, width)
        for rows, tile in method.on(self.pipe).pieces(encoded, (height, width)):
            logits = CLIP_SCALE * cosine_maps(self.clip(tile), self.text)
            probabilities[..., rows, :] = logits.softmax(1)
        by_class = _by_class(resize_bilinear(probabilities, size)[0], self.words)
        return certain_classes(by_class, config.prompt_denoising, self.threshold)


def _by_class(probabilities: Tensor, words: Words) -> Tensor:
    """Return the probability of each class, that of its best word: (W, H, W') -> (K, H, W')."""
    parts = probabilities.split([len(each) for each in words])
    none = torch.zeros_like(probabilities[0])  # of a background without words
    return torch.stack([part.amax(0) if len(part) else none for part in parts])


@dataclass(eq=False)
class _Talk2Dino(_Run):
    """Each window's features, upsampled, beside words projected among them."""

    config: Talk2DinoConfig
    clip: ProjectedText

    backbone: Backbone

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pipe = Pipeline(self.backbone, fit="exact", cache=self.cache / "features")
        self.facts |= {
            "backbone": self.pipe.identity,
            "image_resize": f"short side (bilinear), long side at most {LONGEST}",
        }

    def finish(self, embeddings: Tensor) -> Tensor:
        return self.clip.projection(embeddings)

    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        image, label = self.val.read(file)
        return _resized(image, self.config.short_side, LONGEST), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        masks = slide(
            image[None].to(self.text.device),
            lambda window: self.masks(method, window.clamp(0, 1)),  # padding rounds
            window=self.config.window,
            stride=self.config.stride,
            multiple=self.backbone.size_multiple,
            padding=torch.tensor(self.backbone.image_mean),
        )
        by_class = _by_class(resize_bilinear(masks, size)[0], self.words)
        return certain_classes(by_class, 0.0, self.threshold)

    def masks(self, method: Method, window: Tensor) -> Tensor:
        """Return how well the pixels of a window (1, 3, s, t) fit the words, (1, W, s, t)."""
        encoded = self.pipe.encode(window)
        factor = 1 if isinstance(method, LowRes) else self.config.factor
        height, width = (factor * side for side in encoded.features.shape[-2:])
        masks = self.text.new_empty(1, len(self.text), height, width)
        for rows, tile in method.on(self.pipe).pieces(encoded, (height, width)):
            masks[..., rows, :] = word_masks(tile, self.text)
        return F.interpolate(masks, window.shape[-2:], mode="bilinear", align_corners=True)


_RUNS = {"maskclip": _MaskClip, "proxyclip": _ProxyClip, "radseg": _RadSeg, "talk2dino": _Talk2Dino}


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
