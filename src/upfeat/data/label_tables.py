"""The numbers and names of classes that the published sets use, loaded when asked for."""

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

__all__ = ["IGNORED", "ClassTable", "class_table", "load_table"]

IGNORED = 255


class ClassTable(NamedTuple):
    """Names of the classes, and which stored number means which class (255: ignored)."""

    classes: tuple[str, ...]
    table: dict[int, int]


@cache
def load_table(name: str) -> Any:
    """Return a table of class numbers and names that comes with the package.

    Example:
        >>> from upfeat.data.label_tables import load_table
        >>> load_table("ade20k")["names"][:2]
        ['wall', 'building']
    """
    file = resources.files("upfeat.data") / "tables" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def class_table(name: str, key: str) -> ClassTable:
    """Return the classes of a table that lists labels one by one.

    A class with several labels is called by the first of them. The label -1, which 8-bit files
    store as 255, is ignored either way.

    Args:
        name: of the table.
        key: which of its class numbers.

    Example:
        >>> from upfeat.data.label_tables import class_table
        >>> classes, table = class_table("cityscapes", "train_id")
        >>> len(classes), classes[table[24]], table[0]
        (19, 'person', 255)
    """
    labels = load_table(name)["labels"]
    table = {label["id"]: label[key] for label in labels} | {IGNORED: IGNORED}
    names: dict[int, str] = {}
    for label in labels:
        names.setdefault(label[key], label["name"])
    names.pop(IGNORED)
    return ClassTable(tuple(names[number] for number in range(len(names))), table)
