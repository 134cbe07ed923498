"""Words and prompt templates of open-vocabulary segmentation, and their embeddings.

Templates: A. Radford et al. (CLIP, arXiv 2103.00020), 80; C. Zhou et al. (MaskCLIP, arXiv
2112.01071) add five. Words: those of MaskCLIP and of ProxyCLIP (M. Lan et al., arXiv 2408.04883).

Legend: ``K`` classes, ``W`` words, ``T`` templates, ``C`` channels of the text space.
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

from upfeat.checkpoints import write_safetensors
from upfeat.errors import check_file
from upfeat.evaluation.registry import known_entry
from upfeat.ops import unit_vectors

__all__ = ["Words", "average_prompts", "class_words", "embed_words", "read_words", "templates"]

Words = tuple[tuple[str, ...], ...]
"""The words of each class."""

Order = Literal["normalise", "mean"]
_AT_ONCE = 64  # prompts in one pass of the text encoder


@cache
def _tables() -> dict[str, Any]:
    file = resources.files("upfeat.evaluation.probes") / "prompts.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def templates(name: str) -> tuple[str, ...]:
    """Return prompt templates, in which ``{}`` stands for the word.

    Args:
        name: ``"clip"`` for the 80 of CLIP, ``"maskclip"`` for those and five more.

    Raises:
        UnknownNameError: no such templates.

    Example:
        >>> from upfeat.evaluation.probes.prompts import templates
        >>> len(templates("clip")), templates("maskclip")[-1]
        (80, 'this is one {} in the scene.')
    """
    return tuple(known_entry("templates", name, _tables()["templates"]))


def class_words(source: str, data: str) -> Words:
    """Return the words of each class of a data set.

    Args:
        source: ``"maskclip"`` or ``"proxyclip"``.
        data: name of the set.

    Raises:
        UnknownNameError: the source has no words for the set.

    Example:
        >>> from upfeat.evaluation.probes.prompts import class_words
        >>> class_words("proxyclip", "voc")[4]
        ('ship',)
    """
    sets = known_entry("words", source, _tables()["words"])
    return tuple(tuple(words) for words in known_entry("data set", data, sets))


def read_words(path: str | Path) -> Words:
    """Read the words of each class from a text file.

    Args:
        path: a class a line, in the order of the data's classes; several words of one class stand
            on its line with commas between them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a class has no word, or the file is empty.

    Example:
        >>> import pathlib, tempfile
        >>> from upfeat.evaluation.probes.prompts import read_words
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "words.txt")
        ...     _ = path.write_text("sky, cloud")
        ...     read_words(path)
        (('sky', 'cloud'),)
    """
    check_file(path, "list of words")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = [tuple(word.strip() for word in line.split(",")) for line in lines]
    for number, row in enumerate(rows):
        if not all(row):
            raise ValueError(
                f"{path}, line {number + 1}: class {number} has an empty word; write a class a "
                "line, its words with commas between them, and no empty line"
            )
    if not rows:
        raise ValueError(f"{path} is empty; write a class a line")
    return tuple(rows)


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
        >>> from upfeat.evaluation.probes.prompts import average_prompts
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
        >>> from upfeat.evaluation.probes.prompts import embed_words
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
