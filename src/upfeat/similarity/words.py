"""Words as vectors of CLIP's text space: prompt templates and their mean embeddings.

Templates: A. Radford et al. (CLIP, arXiv 2103.00020), 80, of which the authors' notebook recommends
seven; C. Zhou et al. (MaskCLIP, arXiv 2112.01071) add five.

Legend: ``W`` words, ``T`` templates, ``C`` channels of the text space.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from upfeat.backbones.base import Backbone
from upfeat.checkpoints import write_safetensors
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.ops import unit_vectors

__all__ = ["average_prompts", "embed_words", "split_words", "templates", "text_encoder"]

Order = Literal["normalise", "mean"]
_AT_ONCE = 64  # prompts in one pass of the text encoder


@cache
def _templates() -> dict[str, Any]:
    file = resources.files("upfeat.similarity") / "templates.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["templates"]
    return content


def templates(name: str) -> tuple[str, ...]:
    """Return prompt templates, in which ``{}`` stands for the word.

    Args:
        name: ``"clip"`` for the 80 of CLIP, ``"clip7"`` for the seven of them that its authors
            recommend, ``"maskclip"`` for the 80 and five more.

    Raises:
        UnknownNameError: no such templates.

    Example:
        >>> from upfeat.similarity.words import templates
        >>> len(templates("clip")), templates("maskclip")[-1]
        (80, 'this is one {} in the scene.')
    """
    if name not in _templates():
        raise UnknownNameError("templates", name, _templates())
    return tuple(_templates()[name])


def split_words(text: str, most: int | None = None) -> tuple[str, ...]:
    """Read words with commas between them.

    Args:
        text: such as ``"dog, green grass"``.
        most: the largest number of words.

    Raises:
        ValueError: no word, one twice, or too many.

    Example:
        >>> from upfeat.similarity.words import split_words
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
    """Return the text encoder whose space a backbone's features lie in.

    Args:
        backbone: ``clip/NAME``.

    Returns:
        A function of T texts that gives (T, C).

    Raises:
        UnsupportedError: the backbone's features lie in no text space.

    Example:
        >>> import upfeat
        >>> from upfeat.similarity.words import text_encoder
        >>> try:
        ...     text_encoder(upfeat.create_backbone("upfeat/vit_compact_patch16"))
        ... except ValueError as error:
        ...     print(str(error).split(";")[0])
        upfeat/vit_compact_patch16 has no text space
    """
    encode: Callable[[Sequence[str]], Tensor] | None = getattr(backbone, "encode_text", None)
    if encode is None or not getattr(backbone, "project", True):
        raise UnsupportedError(
            f"{backbone.name} has no text space; words want a CLIP, such as clip/ViT-B-16.openai "
            "(pip install upfeat[clip])"
        )
    return encode


def average_prompts(embeddings: Tensor, order: Order = "normalise") -> Tensor:
    """Average the embeddings of one word in several templates.

    Args:
        embeddings: (W, T, C).
        order: ``"normalise"`` brings each to unit length before the mean (CLIP, MaskCLIP,
            ProxyCLIP); ``"mean"`` takes the mean of them as they are (Talk2DINO).

    Returns:
        (W, C) of unit length.

    Example:
        >>> import torch
        >>> from upfeat.similarity.words import average_prompts
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
) -> Tensor:
    """Embed words in all templates; what was embedded before is read from a folder.

    Args:
        encode: texts to (n, C), such as ``ClipBackbone.encode_text``.
        words: W of them.
        prompts: T templates.
        cache: folder of embeddings, a file for each list of words; None keeps none.
        encoder: what tells the encoder and its weights apart from others.

    Returns:
        (W, C) of unit length.

    Example:
        >>> import torch
        >>> from upfeat.similarity.words import embed_words
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
    found = average_prompts(encoded.unflatten(0, (len(words), len(prompts))))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"embeddings": found})
    return found
