"""Where is "a dog"? Words against upsampled features, with CLIP or with Talk2DINO's projection.

    python examples/text_query.py photo.jpg --text "a dog, grass" --clip ViT-B-16.openai
    python examples/text_query.py photo.jpg --text "a dog, grass" --projection talk2dino.pth \
        --backbone timm/vit_base_patch14_reg4_dinov2.lvd142m

CLIP's own patch tokens lie in the space of its texts. Other features do not: Talk2DINO learned a
projection, two layers with a tanh between them, from CLIP's text space into that of DINOv2.
Needs `pip install 'upfeat[clip]'` and weights of CLIP (downloaded at first use).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import upfeat
from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.checkpoints import read_checkpoint, unwrap_state


def text_projection(state: Mapping[str, Tensor]) -> nn.Module:
    """Talk2DINO's projection from its state dict: Linear, tanh, Linear; sizes from the tensors."""
    weights = [value for key, value in state.items() if key.endswith("weight")]
    biases = [value for key, value in state.items() if key.endswith("bias")]
    if len(weights) != 2 or len(biases) != 2:
        raise ValueError(
            f"a projection has two layers with bias, got {', '.join(state) or 'no tensors'}"
        )
    first, last = (nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights)
    for layer, weight, bias in zip((first, last), weights, biases, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(first, nn.Tanh(), last).eval()


@torch.no_grad()
def word_maps(pipe: upfeat.Pipeline, photo: str | Path, words: Tensor) -> Tensor:
    """Cosine (K, H, W) between each pixel's features and K words.

    Args:
        pipe: backbone and upsampler.
        photo: the file.
        words: (K, C), in the space of the features.
    """
    if words.shape[1] != pipe.backbone.dim:
        raise ValueError(
            f"words have {words.shape[1]} channels and features {pipe.backbone.dim}; a projection "
            "of Talk2DINO takes texts of CLIP to other features"
        )
    sharp = F.normalize(pipe(photo).high, dim=0)  # (C, H, W)
    return torch.einsum("kc,chw->khw", F.normalize(words, dim=1), sharp)


def main(arguments: Sequence[str] | None = None) -> Tensor:
    """Write the number of the nearest word at each pixel as a PNG of grey values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--text", required=True, help="words with commas between them")
    parser.add_argument("--clip", default="ViT-B-16.openai", help="model of open_clip")
    parser.add_argument("--backbone", help="of the photo; default: CLIP itself")
    parser.add_argument("--projection", type=Path, help="Talk2DINO's, for another backbone")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--out", type=Path, default=Path("words.png"))
    given = parser.parse_args(arguments)

    clip = cast(ClipBackbone, upfeat.create_backbone(f"clip/{given.clip}"))
    names = [name.strip() for name in given.text.split(",")]
    words = clip.encode_text(names)
    if given.projection is not None:
        words = text_projection(unwrap_state(read_checkpoint(given.projection)))(words)
    pipe = upfeat.Pipeline(given.backbone or clip, given.upsampler)
    maps = word_maps(pipe, given.photo, words)
    nearest = maps.argmax(0)
    Image.fromarray((nearest * 255 // max(1, len(names) - 1)).to(torch.uint8).numpy()).save(
        given.out
    )
    for number, name in enumerate(names):
        print(f"{name}: nearest on {(nearest == number).float().mean():.1%} of the pixels")
    return maps


if __name__ == "__main__":
    main()
