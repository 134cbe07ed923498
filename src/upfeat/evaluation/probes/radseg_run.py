"""RADSeg's segmentation by words (O. Alama et al., arXiv 2511.19704; the task PixelUp reports).

RADIO's last block attends by itself, in windows; the stitched map is upsampled, and the head of an
adaptor brings it to the words. The backbone is a RADIO with an adaptor.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from upfeat.backbones.radio_backbone import LanguageAdaptor, RadioBackbone
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes.radseg import RadSegFeatures, certain_classes, radseg_size
from upfeat.evaluation.probes.word_runs import WordsConfig, WordsRun, by_class, resized
from upfeat.ops.images import resize_bilinear
from upfeat.pipeline import Pipeline
from upfeat.similarity.maps import CLIP_SCALE, cosine_maps


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


@dataclass(eq=False)
class RadSegRun(WordsRun):
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
        """Read, and resize the image."""
        image, label = self.val.read(file)
        image = resized(image, self.config.short_side, self.config.long_side)
        own = (image.shape[1], image.shape[2])
        size = radseg_size(own, self.config.window, self.config.stride)
        return resize_bilinear(image[None], size)[0].clamp(0, 1), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        """Take the class of the best word at each pixel."""
        encoded, config = self.pipe.encode(image), self.config
        factor = 1 if isinstance(method, LowRes) else config.factor
        height, width = (factor * side for side in encoded.features.shape[-2:])
        probabilities = self.text.new_empty(1, len(self.text), height, width)
        for rows, tile in method.on(self.pipe).pieces(encoded, (height, width)):
            logits = CLIP_SCALE * cosine_maps(self.clip(tile), self.text)
            probabilities[..., rows, :] = logits.softmax(1)
        probable = by_class(resize_bilinear(probabilities, size)[0], self.words)
        return certain_classes(probable, config.prompt_denoising, self.threshold)
