"""The command that makes a table again, from the settings in its results."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from upfeat.evaluation.registry import titled_protocol
from upfeat.evaluation.tables.build import Row, Table

__all__ = ["table_command"]

_GIVEN = ("data", "preset", "seeds", "limit")  # settings with an option of their own


def table_command(table: Table) -> str:
    r"""Return the ``upfeat eval`` call that gives a table's results.

    ``--set`` names every setting that is not the preset's. What the results do not hold stands in
    capitals: the folder of a method that was given as one, or of a teacher.

    Args:
        table: of :func:`upfeat.evaluation.tables.build_tables`.

    Example:
        >>> from upfeat.evaluation.tables.commands import table_command
        >>> from upfeat.evaluation.results import Result
        >>> from upfeat.evaluation.tables.build import build_tables
        >>> settings = {"data": "msrc", "preset": "pixel-sample", "steps": 100, "seeds": [0]}
        >>> settings["upsampler"] = {"name": "bilinear"}
        >>> result = Result(task="seg-probe", label="bilinear", settings=settings, scores={})
        >>> print(table_command(build_tables([result])[0]))
        upfeat eval seg-probe --data msrc --root data/msrc --preset pixel-sample \
          --upsampler bilinear --seeds 0 --set steps=100 --out results
    """
    first = ["upfeat", "eval", table.task]
    if table.backbone:
        first += ["--backbone", table.backbone]
    if table.data:
        first += ["--data", table.data, "--root", f"data/{table.data}"]
    if table.preset and titled_protocol(table.task).presets:
        first += ["--preset", table.preset]
    if table.settings.get("teacher"):
        first += ["--teacher", "FOLDER"]
    second = ["--upsampler", ",".join(_entry(row) for row in reversed(table.rows))]
    seeds = table.rows[0].result.settings.get("seeds")
    if seeds is not None:
        second += ["--seeds", ",".join(map(str, seeds))]
    if table.quick_look:
        second += ["--limit", str(table.settings["limit"])]
    for name, value in _changed(table).items():
        text = value if isinstance(value, str) else json.dumps(value)
        second += ["--set", f"{name}={text}"]
    second += ["--out", "results"]
    return f"{shlex.join(first)} \\\n  {shlex.join(second)}"


def _entry(row: Row) -> str:
    """Return what names a method in ``--upsampler``."""
    method = row.result.settings.get("upsampler")
    name = method.get("name") if isinstance(method, Mapping) else None
    if name is None or row.label == name or row.label.startswith(f"{name}."):
        return row.label
    return f"{row.label}=FOLDER"


def _changed(table: Table) -> dict[str, Any]:
    """Return the settings that are not those of preset and data."""
    try:
        settings = titled_protocol(table.task).settings(table.preset, table.data)
    except ValueError:
        return {}  # no such protocol, preset or set in this version
    return {
        name: table.settings[name]
        for name, value in settings.model_dump(mode="json").items()
        if name not in _GIVEN and name in table.settings and table.settings[name] != value
    }
