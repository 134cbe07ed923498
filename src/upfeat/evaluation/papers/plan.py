"""What a table needs and how it is run: jobs of one protocol each, at the papers' size or small."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from upfeat.errors import UnknownNameError
from upfeat.evaluation.papers import PublishedFigure, PublishedTable
from upfeat.evaluation.papers.records import PublishedColumn, PublishedRow
from upfeat.evaluation.papers.sources import SMALL, SmallTask, paper_method
from upfeat.evaluation.registry import get_protocol, list_protocols

SMALL_BACKBONE = "upfeat/vit_compact_patch16"
"""Backbone of small runs."""
_SIDES = ("crop_size", "target_size")
_FIGURE_TASKS = {"cam": "cam", "segmentation": "seg-probe", "depth": "depth-probe"}


@dataclass(frozen=True)
class TableJob:
    """One call of a protocol.

    Attributes:
        task: the protocol.
        preset: of it.
        data: name of the set; None for a protocol without data.
        published: the paper's name of the set.
        changes: settings that differ from the preset's.
        options: of the protocol.
        backbone: name of it; empty where a width is enough.
        rows: the methods.
        columns: numbers of the table's columns that it fills.
    """

    task: str
    preset: str
    data: str | None
    published: str
    changes: Mapping[str, Any]
    options: Mapping[str, Any]
    backbone: str
    rows: tuple[PublishedRow, ...]
    columns: tuple[int, ...]


def not_ready(task: str, preset: str = "") -> str | None:
    """Say what a column's task and preset still wait for in this version; None if it can be run.

    Example:
        >>> from upfeat.evaluation.papers.plan import not_ready
        >>> not_ready("seg-probe", "jafar"), not_ready("tracking")
        (None, 'protocol tracking is not registered')
    """
    if task not in list_protocols():
        return f"protocol {task} is not registered"
    if preset and preset not in get_protocol(task).presets:
        return f"protocol {task} has no preset {preset}"
    return None


def small_settings(
    task: SmallTask, preset: str, changes: Mapping[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """Return the changes of a small run: its own, with a row's sides at half their size.

    Args:
        task: what a small run changes.
        preset: of the protocol.
        changes: of the row and the column.
        known: fields of the protocol's settings; what they lack is left out.

    Example:
        >>> from upfeat.evaluation.papers.plan import small_settings
        >>> from upfeat.evaluation.papers.sources import SmallTask
        >>> task = SmallTask(changes={"crop_size": 96, "epochs": 1})
        >>> small_settings(task, "jafar", {"crop_size": 448}, ["crop_size", "epochs"])
        {'crop_size': 224, 'epochs': 1}
    """
    halved = {
        name: max(32, -(-value // 32) * 16) if name in _SIDES else value
        for name, value in changes.items()
    }
    cells = {"cells": task.cells[preset]} if preset in task.cells else {}
    wanted = {**task.changes, **cells, **halved}
    return {name: value for name, value in wanted.items() if name in known}


def plan_jobs(
    table: PublishedTable, *, keys: Collection[str] = (), small: bool = False
) -> list[TableJob]:
    """Return the calls that fill a table, in the order of its columns.

    Args:
        table: of a paper.
        keys: of the rows that are wanted, or their methods; none for all.
        small: at the size of a test, with sets and a backbone that are at hand.

    Raises:
        UnknownNameError: no such row; the message lists them.

    Example:
        >>> from upfeat.evaluation.papers import find_published
        >>> from upfeat.evaluation.papers.plan import plan_jobs
        >>> (table,) = find_published(["loftup:table-3"])
        >>> [(job.task, job.data, len(job.rows)) for job in plan_jobs(table, small=True)][:2]
        [('seg-probe', 'nyuv2_13', 5), ('seg-probe', 'camvid', 5)]
    """
    for key in keys:
        if not any(key in (row.key, row.uses) for row in table.rows):
            raise UnknownNameError(f"row of {table.id}", key, [row.key for row in table.rows])
    rows = [row for row in table.rows if not keys or row.key in keys or row.uses in keys]
    groups: dict[str, list[tuple[int, PublishedRow]]] = {}
    for row in rows:
        for index, column in enumerate(table.columns):
            parts = (column.task, column.preset, column.data[0], column.changes | row.changes)
            groups.setdefault(json.dumps(parts, sort_keys=True), []).append((index, row))
    return [_job(table, members, small) for members in groups.values()]


def _job(table: PublishedTable, members: list[tuple[int, PublishedRow]], small: bool) -> TableJob:
    """Return the call for columns and rows that share all settings."""
    index, first = members[0]
    column = table.columns[index]
    changes: dict[str, Any] = column.changes | first.changes
    preset, data, backbone = column.preset, column.data[0], table.backbone
    options: dict[str, Any] = {}
    if small:
        task = SMALL.get(column.task, SmallTask())
        preset = task.presets.get(data, preset)
        data = task.data.get(data, data)
        backbone = backbone and task.backbones.get(preset, SMALL_BACKBONE)
        known = _fields(column, preset, data if preset in task.presets.values() else column.data[0])
        changes, options = small_settings(task, preset, changes, known), dict(task.options)
    return TableJob(
        task=column.task,
        preset=preset,
        data=data if column.task != "efficiency" else None,
        published=column.data[0],
        changes=changes,
        options=options,
        backbone=backbone,
        rows=tuple({row.key: row for _, row in members}.values()),
        columns=tuple(dict.fromkeys(number for number, _ in members)),
    )


def _fields(column: PublishedColumn, preset: str, data: str) -> Collection[str]:
    """Return the names of a protocol's settings; none while it is not there."""
    if not_ready(column.task, preset) is not None:
        return ()
    return type(get_protocol(column.task).settings(preset, data)).model_fields


def trained_on(task: str, small: bool) -> tuple[str, ...]:
    """Return the sets that a protocol itself trains on, at the papers' size or ``small``.

    Example:
        >>> from upfeat.evaluation.papers.plan import trained_on
        >>> trained_on("interactive", small=False), trained_on("vos", small=False)
        (('sbd',), ())
    """
    if small:
        return SMALL.get(task, SmallTask()).trained_on
    return ("sbd",) if task == "interactive" else ()


def needed_sets(
    item: PublishedTable | PublishedFigure, *, keys: Collection[str] = (), small: bool = False
) -> dict[str, str]:
    """Return the data sets that a table or figure needs, with what each is for.

    ``keys`` are rows of a table, none for all; ``small`` is at the size of a test.
    """
    found: dict[str, str] = {}
    if isinstance(item, PublishedFigure):
        task = SMALL.get(_FIGURE_TASKS.get(item.kind, ""), SmallTask())
        found[task.data.get(item.data, item.data) if small else item.data] = "images"
        uses = [paper_method(name) for name in item.methods]
    else:
        for job in plan_jobs(item, keys=keys, small=small):
            if job.data is not None:
                found[job.data] = job.task
            found |= dict.fromkeys(trained_on(job.task, small), f"training of {job.task}")
        wanted = [row for row in item.rows if not keys or row.key in keys or row.uses in keys]
        uses = [paper_method(row.uses) for row in wanted]
    cost_only = isinstance(item, PublishedTable) and set(item.tasks) == {"efficiency"}
    for method in () if cost_only else uses:
        if method.images:
            images = "imagenet" if small else method.images
            found.setdefault(images, f"training of {method.arch}")
    return found
