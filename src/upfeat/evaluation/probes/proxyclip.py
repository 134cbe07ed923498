"""ProxyCLIP's segmentation by words (M. Lan et al., arXiv 2408.04883; LoftUp's table 4).

The backbone is the proxy. Its upsampled features give the weights that mix CLIP's values of the
last block, in overlapping windows; the mixed values are compared with the words.

Legend: ``W`` words.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.data.segmentation import LabelledFile
from upfeat.data.sizes import Size
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes.open_vocabulary import proxy_attention, slide
from upfeat.evaluation.probes.word_runs import LONGEST, WordsConfig, WordsRun, resized
from upfeat.ops.images import normalize, resize_bilinear
from upfeat.pipeline import Pipeline
from upfeat.similarity.maps import classes_of_words, cosine_maps


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


@dataclass(eq=False)
class ProxyClipRun(WordsRun):
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
        """Read, and resize the image."""
        image, label = self.val.read(file)
        return resized(image, self.config.short_side, LONGEST), label

    def predict(self, method: Method, image: Tensor, size: Size) -> Tensor:
        """Take the class of the best word at each pixel."""
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
