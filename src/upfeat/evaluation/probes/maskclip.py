"""MaskCLIP's segmentation by words (JAFAR, arXiv 2506.11136, table 3): CLIP's map, upsampled.

CLIP's patch tokens in the text space take the class of the nearest word. The words' embeddings are
a linear head, so that a method that mixes values upsamples one channel a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.data.transforms import resize_and_crop
from upfeat.evaluation.methods import Method
from upfeat.evaluation.probes.open_vocabulary import denoise_words, smooth_by_keys
from upfeat.evaluation.probes.word_runs import WordsConfig, WordsRun
from upfeat.ops.images import normalize
from upfeat.pipeline import Encoded, Pipeline
from upfeat.similarity.maps import cosine_maps, segment_words


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


@dataclass(eq=False)
class MaskClipRun(WordsRun):
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
        """Read, resize and crop."""
        image, label = self.val.read(file)
        return resize_and_crop(image, label, self.config.crop_size)

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        """Take the class of the best word at each pixel."""
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
