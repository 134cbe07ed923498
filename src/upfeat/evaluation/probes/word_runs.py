"""What all presets of open-vocabulary segmentation share: words, and the loop over the images.

Legend: ``C`` channels of features, ``W`` words, ``K`` classes, ``H W`` image.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.backbones.radio_backbone import LanguageAdaptor
from upfeat.checkpoints import write_safetensors
from upfeat.data import SegmentationData
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.evaluation.methods import Method
from upfeat.evaluation.metrics import SegmentationMetric
from upfeat.evaluation.probes.open_vocabulary import Words
from upfeat.evaluation.probes.parts import mean_class_ious
from upfeat.evaluation.probes.talk2dino import ProjectedText
from upfeat.evaluation.registry import ProtocolConfig
from upfeat.evaluation.running import Measured, Pending, ProtocolRun, described_splits, seed_scores
from upfeat.ops.images import resize_bilinear
from upfeat.similarity.maps import average_prompts, embed_words, templates, word_classes

TASK = "open-vocabulary"
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


@dataclass(eq=False)
class WordsRun(ProtocolRun):
    """One preset on one split.

    Args:
        val: the split.
        clip: knows the words.
        words: of each class.
        cache: folder of features, words' embeddings, and how far an interrupted run came.
    """

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


def resized(image: Tensor, short_side: int, longest: int) -> Tensor:
    """Return an image (3, H, W) with this short side, or the longest long side if that is less."""
    height, width = image.shape[-2:]
    factor = min(short_side / min(height, width), longest / max(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    return resize_bilinear(image[None], size)[0].clamp(0, 1)


def by_class(probabilities: Tensor, words: Words) -> Tensor:
    """Return the probability of each class, that of its best word: (W, H, W') -> (K, H, W')."""
    parts = probabilities.split([len(each) for each in words])
    none = torch.zeros_like(probabilities[0])  # of a background without words
    return torch.stack([part.amax(0) if len(part) else none for part in parts])
