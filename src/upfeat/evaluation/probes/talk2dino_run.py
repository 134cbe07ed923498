"""Talk2DINO's segmentation by words (L. Barsellotti et al., arXiv 2411.19331; ViT-Up's task).

CLIP's words are projected among DINOv2's features, which are upsampled in windows.

Legend: ``W`` words.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes.open_vocabulary import slide
from upfeat.evaluation.probes.radseg import certain_classes
from upfeat.evaluation.probes.talk2dino import ProjectedText, word_masks
from upfeat.evaluation.probes.word_runs import LONGEST, WordsConfig, WordsRun, by_class, resized
from upfeat.ops.images import resize_bilinear
from upfeat.pipeline import Pipeline


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


@dataclass(eq=False)
class Talk2DinoRun(WordsRun):
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
        """Project the words among the backbone's features."""
        return self.clip.projection(embeddings)

    def read(self, file: LabelledFile) -> tuple[Tensor, Tensor]:
        """Read, and resize the image."""
        image, label = self.val.read(file)
        return resized(image, self.config.short_side, LONGEST), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        """Take the class of the best word at each pixel."""
        masks = slide(
            image[None].to(self.text.device),
            lambda window: self.masks(method, window.clamp(0, 1)),  # padding rounds
            window=self.config.window,
            stride=self.config.stride,
            multiple=self.backbone.size_multiple,
            padding=torch.tensor(self.backbone.image_mean),
        )
        probable = by_class(resize_bilinear(masks, size)[0], self.words)
        return certain_classes(probable, 0.0, self.threshold)

    def masks(self, method: Method, window: Tensor) -> Tensor:
        """Return how well the pixels of a window (1, 3, s, t) fit the words, (1, W, s, t)."""
        encoded = self.pipe.encode(window)
        factor = 1 if isinstance(method, LowRes) else self.config.factor
        height, width = (factor * side for side in encoded.features.shape[-2:])
        masks = self.text.new_empty(1, len(self.text), height, width)
        for rows, tile in method.on(self.pipe).pieces(encoded, (height, width)):
            masks[..., rows, :] = word_masks(tile, self.text)
        return F.interpolate(masks, window.shape[-2:], mode="bilinear", align_corners=True)
