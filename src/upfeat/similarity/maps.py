"""Cosines of upsampled features with vectors: with another pixel's features, or with words.

The upsampled map is never held: it comes in strips of rows, and of each strip stay one channel a
vector, or the number of the nearest word. Words are vectors of CLIP's text space, the mean
embeddings of prompt templates: A. Radford et al. (CLIP, arXiv 2103.00020) have 80, of which the
authors' notebook recommends seven; C. Zhou et al. (MaskCLIP, arXiv 2112.01071) add five.

Legend: ``B`` batch, ``C`` channels, ``W`` words, ``T`` templates, ``P`` pixels, ``h w`` grid,
``H' W'`` output.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from upfeat.backbones.base import Backbone
from upfeat.checkpoints import write_safetensors
from upfeat.data.sizes import Size
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.ops import unit_vectors
from upfeat.pipeline import Encoded, Pipeline

CLIP_SCALE = 100.0
"""CLIP's largest logit scale."""


def cosine_maps(features: Tensor, text: Tensor) -> Tensor:
    """Compute the cosine (B, W, h, w) of each cell with each word.

    Args:
        features: (B, C, h, w).
        text: (W, C) of unit length, words or other vectors.

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import cosine_maps
        >>> cosine_maps(torch.full((1, 2, 1, 1), 5.0), torch.eye(2))[0, :, 0, 0]
        tensor([0.7071, 0.7071])
    """
    return torch.einsum("bchw,kc->bkhw", unit_vectors(features, dim=1), text.to(features))


def word_classes(counts: list[int]) -> Tensor:
    """Return the class of each word, from the number of words of each class."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def classes_of_words(
    logits: Tensor, classes: Tensor, *, scale: float = 1.0, threshold: float = 0.0
) -> Tensor:
    """Return the class of the most probable word of each cell, (B, h, w) int64.

    Args:
        logits: (B, W, h, w).
        classes: (W,) the class of each word.
        scale: of the logits in the softmax over all words.
        threshold: cells whose winner's probability is below this become class 0.

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import classes_of_words
        >>> logits = torch.tensor([0.0, 2.0, 1.0]).reshape(1, 3, 1, 1)
        >>> classes = torch.tensor([0, 3, 1])
        >>> [classes_of_words(logits, classes, threshold=t).item() for t in (0.0, 0.9)]
        [3, 0]
    """
    best, word = logits.max(1)  # the best word's class is the class with the best word
    found = classes.to(word.device)[word]
    if threshold <= 0:
        return found
    probability = (scale * best - (scale * logits).logsumexp(1)).exp()
    return found.masked_fill(probability < threshold, 0)


@torch.no_grad()
def pixel_similarity(
    pipe: Pipeline, encoded: Encoded, pixels: Sequence[tuple[int, int]], size: Size
) -> Tensor:
    """Compute the cosine of every pixel's upsampled features with those of some pixels.

    The result is (P, H', W'), float32, on the CPU. The upsampled map comes twice: once for the
    pixels alone, where the method can answer single positions, and once in strips.

    Args:
        pipe: backbone and upsampler, with ``fit="resize"`` or ``"exact"``.
        encoded: one image, from ``pipe.encode``.
        pixels: P rows and columns of the output.
        size: (H', W') of the output.

    Raises:
        ValueError: the image was padded, or a pixel lies outside.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.similarity import pixel_similarity
        >>> backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"), fit="resize")
        >>> encoded = pipe.encode(torch.rand(3, 32, 48))
        >>> maps = pixel_similarity(pipe, encoded, [(4, 7)], (32, 48))
        >>> maps.shape, round(maps[0, 4, 7].item(), 4)
        (torch.Size([1, 32, 48]), 1.0)
    """
    _check_unpadded(encoded)
    for row, col in pixels:
        if not (0 <= row < size[0] and 0 <= col < size[1]):
            raise ValueError(
                f"pixel {row},{col} lies outside the output of {size[0]} rows and {size[1]} columns"
            )
    flat = torch.tensor([row * size[1] + col for row, col in pixels])
    vectors = unit_vectors(pipe.at(encoded, size, flat).float(), dim=1)  # (P, C)
    maps = torch.empty(len(pixels), *size)
    for rows, tile in pipe.pieces(encoded, size):
        maps[:, rows] = cosine_maps(tile.float(), vectors)[0].cpu()
    return maps.clamp(-1, 1)


@torch.no_grad()
def segment_words(
    pipe: Pipeline,
    encoded: Encoded,
    size: Size,
    text: Tensor,
    classes: Tensor | None = None,
    *,
    threshold: float = 0.0,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Give every pixel the class of the nearest word: (H', W') int64, on the CPU.

    Words are a linear head: a method that mixes values upsamples one channel a word.

    Args:
        pipe: a backbone of a text space and an upsampler, with ``fit="resize"`` or ``"exact"``.
        encoded: one image, from ``pipe.encode``.
        size: (H', W') of the output.
        text: (W, C) of unit length, see :func:`upfeat.similarity.maps.embed_words`.
        classes: (W,) the class of each word; None: each word is a class.
        threshold: pixels whose best word has a probability below this become class 0.
        head: from features to (B, W, h, w) in place of the words' products.

    Raises:
        ValueError: the image was padded.

    Example:
        >>> import torch, upfeat
        >>> from upfeat.similarity import segment_words
        >>> backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
        >>> pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("nearest"), fit="resize")
        >>> image = torch.zeros(3, 4, 8)
        >>> image[0, :, :4] = image[2, :, 4:] = 1.0
        >>> segment_words(pipe, pipe.encode(image), (1, 4), torch.eye(3)).tolist()
        [[0, 0, 2, 2]]
    """
    _check_unpadded(encoded)
    if classes is None:
        classes = torch.arange(len(text))
    # A pixel's length changes no ranking of its words, only their probabilities.
    by_length = threshold > 0 and head is None
    if head is None and not by_length:
        weight = text[:, :, None, None]  # (W, C, 1, 1)

        def head(features: Tensor) -> Tensor:
            return F.conv2d(features, weight.to(features))

    found = torch.empty(size, dtype=torch.int64)
    for rows, tile in pipe.pieces(encoded, size, head):
        logits = cosine_maps(tile, text) if by_length else tile
        nearest = classes_of_words(logits, classes, scale=CLIP_SCALE, threshold=threshold)
        found[rows] = nearest[0].cpu()
    return found


def _check_unpadded(encoded: Encoded) -> None:
    if encoded.frame.input != encoded.frame.padded:
        raise ValueError(
            f"the image of {encoded.frame.input} was padded to {encoded.frame.padded}; encode it "
            "with Pipeline(..., fit='resize')"
        )


# -- words ---------------------------------------------------------------------------------------

Order = Literal["normalise", "mean"]
_AT_ONCE = 64  # prompts in one pass of the text encoder


@cache
def _templates() -> dict[str, Any]:
    file = resources.files("upfeat.similarity") / "templates.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["templates"]
    return content


def templates(name: str) -> tuple[str, ...]:
    """Return prompt templates, in which ``{}`` stands for the word.

    ``"clip"`` are the 80 of CLIP, ``"clip7"`` the seven of them that its authors recommend,
    ``"maskclip"`` the 80 and five more, ``"talk2dino"`` its seven.

    Example:
        >>> from upfeat.similarity.maps import templates
        >>> len(templates("clip")), templates("maskclip")[-1]
        (80, 'this is one {} in the scene.')
    """
    if name not in _templates():
        raise UnknownNameError("templates", name, _templates())
    return tuple(_templates()[name])


def split_words(text: str, most: int | None = None) -> tuple[str, ...]:
    """Read at most ``most`` words with commas between them.

    Raises:
        ValueError: no word, one twice, or too many.

    Example:
        >>> from upfeat.similarity.maps import split_words
        >>> split_words("dog, green grass,")
        ('dog', 'green grass')
    """
    words = tuple(" ".join(word.split()) for word in text.split(",") if word.strip())
    if not words:
        raise ValueError(f"no words in {text!r}; write some with commas between them: dog, grass")
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise ValueError(f"{', '.join(twice)} stands twice in {text!r}; name each word once")
    if most is not None and len(words) > most:
        raise ValueError(
            f"{len(words)} words in {text!r}, at most {most} are taken; leave out some"
        )
    return words


def text_encoder(backbone: Backbone) -> Callable[[Sequence[str]], Tensor]:
    """Return the encoder of T texts, (T, C), in whose space a backbone's features lie.

    Raises:
        UnsupportedError: the backbone's features lie in no text space.
    """
    encode: Callable[[Sequence[str]], Tensor] | None = getattr(backbone, "encode_text", None)
    if encode is None or not getattr(backbone, "project", True):
        raise UnsupportedError(
            f"{backbone.name} has no text space; words want a CLIP, such as clip/ViT-B-16.openai "
            "(pip install upfeat[clip])"
        )
    return encode


def average_prompts(embeddings: Tensor, order: Order = "normalise") -> Tensor:
    """Average the embeddings of one word in several templates: (W, C) of unit length.

    Args:
        embeddings: (W, T, C).
        order: ``"normalise"`` brings each to unit length before the mean (CLIP, MaskCLIP,
            ProxyCLIP); ``"mean"`` takes the mean of them as they are (Talk2DINO).

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import average_prompts
        >>> average_prompts(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), "mean")
        tensor([[0.9487, 0.3162]])
    """
    if order == "normalise":
        embeddings = unit_vectors(embeddings, dim=-1)
    return unit_vectors(embeddings.mean(1), dim=-1)


def embed_words(
    encode: Callable[[list[str]], Tensor],
    words: Sequence[str],
    prompts: Sequence[str],
    *,
    cache: Path | None = None,
    encoder: str = "",
    finish: Callable[[Tensor], Tensor] = average_prompts,
) -> Tensor:
    """Embed words in all templates as (W, C) of unit length; a folder keeps what was embedded.

    Args:
        encode: texts to (n, C), such as ``ClipBackbone.encode_text``.
        words: W of them.
        prompts: T templates.
        cache: folder of embeddings, a file for each list of words; None keeps none.
        encoder: what tells the encoder, ``finish`` and their weights apart from others.
        finish: makes a unit vector of each word's embeddings (W, T, C).

    Example:
        >>> import torch
        >>> from upfeat.similarity.maps import embed_words
        >>> lengths = lambda texts: torch.tensor([[float(len(text)), 1.0] for text in texts])
        >>> embed_words(lengths, ["cat", "horse"], ["a {}.", "the {}."]).shape
        torch.Size([2, 2])
    """
    path = None
    if cache is not None:
        key = json.dumps([encoder, list(words), list(prompts)])
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            return load_file(path)["embeddings"]
    texts = [prompt.format(word) for word in words for prompt in prompts]
    encoded = torch.cat(
        [encode(texts[at : at + _AT_ONCE]).float().cpu() for at in range(0, len(texts), _AT_ONCE)]
    )
    # (W*T, C) -> (W, T, C) -> (W, C)
    found = finish(encoded.unflatten(0, (len(words), len(prompts)))).cpu()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"embeddings": found})
    return found
