"""The card of a user's own data set: a YAML file ``upfeat-data.yaml`` in its folder.

Everything in it is optional; a folder without a card is read by its layout alone, see
:mod:`upfeat.data.own`. The keys ``path``, ``train``, ``val`` and ``names`` mean what they do in the
cards of YOLO-style training tools, so that such a card is read as it is::

    name: street                # in tables and file names; default: the folder's name
    path: .                     # folder of the data, relative to the card
    train: train                # a folder with images/ and labels/, images/train, or a list (.txt)
    val: val
    names: [road, car, person]  # or {0: road, 1: car, 2: person}
    ignore: 255                 # label without meaning; default 255
    units: 1000                 # depth: stored numbers a metre; default 1000 in 16 bit
    focal: 525                  # depth: focal length in pixels, or [fx, fy], for normals
    center: [320, 240]          # depth: principal point in pixels; default: the middle
    one_object: false           # video: every number but 0 is the one object
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, NonNegativeInt, PositiveFloat

from upfeat._settings import Settings
from upfeat.data.layouts import PathLike
from upfeat.errors import UnknownNameError, check_file

__all__ = ["CARD", "DataCard", "checked_names", "read_card"]

CARD = "upfeat-data.yaml"
# Keys of other tools' cards that say nothing about the files that are read here.
_PASSED_OVER = ("nc", "test", "download", "task", "channels")


def checked_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Return the names of classes; none may be empty or stand there twice.

    Raises:
        ValueError: an empty name, a name that occurs twice, or fewer than two classes.
    """
    found = tuple(name.strip() for name in names)
    for number, name in enumerate(found):
        if not name:
            raise ValueError(f"{source}: class {number} has an empty name; write one")
    for name, count in Counter(found).items():
        if count > 1:
            places = " and ".join(str(i) for i, other in enumerate(found) if other == name)
            raise ValueError(
                f"{source} names the class {name!r} twice (classes {places}); every class needs "
                "its own name"
            )
    if len(found) < 2:
        raise ValueError(f"{source} names {len(found)} class; a segmentation needs at least two")
    return found


def _listed(names: object) -> object:
    """Return names by number, {0: a, 1: b}, as a list."""
    if not isinstance(names, Mapping):
        return names
    numbers = sorted(number for number in names if isinstance(number, int))
    if len(numbers) != len(names) or numbers != list(range(len(names))):
        raise ValueError(f"the numbers 0, 1, … without a gap, got {', '.join(map(str, names))}")
    return [names[number] for number in numbers]


class DataCard(Settings):
    """What a card says, None where it does not; every error names the card and the key."""

    name: str | None = None
    path: str = "."
    train: str | None = None
    val: str | None = None
    names: Annotated[tuple[str, ...] | None, BeforeValidator(_listed)] = None
    ignore: NonNegativeInt | None = None
    units: PositiveFloat | None = None
    focal: PositiveFloat | tuple[PositiveFloat, PositiveFloat] | None = None
    center: tuple[float, float] | None = None
    one_object: bool = False


def read_card(place: PathLike) -> tuple[DataCard, Path]:
    """Return the card of a data set and the folder that its paths are relative to.

    Args:
        place: the set's folder, with or without a card, or the card itself.

    Returns:
        The card, with its name filled in, and the folder of the data.

    Raises:
        FileNotFoundError: there is no such folder or card.
        ValueError: the card is no YAML, has an unknown key, or a value that does not fit.
    """
    place = Path(place).expanduser()
    file = place if place.suffix in (".yaml", ".yml") else place / CARD
    if file is not place and not place.is_dir():
        raise FileNotFoundError(f"no folder at {place}; it should hold your images and labels")
    if file is place or file.is_file():
        check_file(file, "data card")
        card = _parsed(file)
        folder = (file.parent / card.path).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{file}: there is no folder path: {card.path} ({folder})")
    else:
        card, folder = DataCard(), place
    usable = re.sub(r"[^\w.-]+", "-", folder.resolve().name).strip("-.") or "data"
    return card.model_copy(update={"name": card.name or usable}), folder


def _parsed(file: Path) -> DataCard:
    import yaml

    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{file} is no readable YAML: {text}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} must hold keys with values, such as name: street")
    try:
        card = DataCard(**{k: v for k, v in content.items() if k not in _PASSED_OVER})
    except UnknownNameError as error:
        raise ValueError(f"{file}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if card.name is not None and not re.fullmatch(r"\w[\w.-]*", card.name):
        raise ValueError(
            f"{file}: name must be letters, digits, _, - and . (it becomes part of file names), "
            f"got {card.name!r}"
        )
    if card.names is not None:
        checked_names(card.names, f"{file}, names")
    return card
