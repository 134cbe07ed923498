"""Words of open-vocabulary segmentation: those of MaskCLIP and ProxyCLIP, or a file's.

MaskCLIP: C. Zhou et al., arXiv 2112.01071; ProxyCLIP: M. Lan et al., arXiv 2408.04883. Their
embeddings are :mod:`upfeat.similarity.maps`.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from upfeat.errors import check_file
from upfeat.evaluation.registry import known_entry

__all__ = ["Words", "class_words", "read_words"]

Words = tuple[tuple[str, ...], ...]
"""The words of each class."""


@cache
def _tables() -> dict[str, Any]:
    file = resources.files("upfeat.evaluation.probes") / "words.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["words"]
    return content


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
    sets = known_entry("words", source, _tables())
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
