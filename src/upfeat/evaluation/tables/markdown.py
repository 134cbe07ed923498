"""Results as a Markdown page: tables, the command of each, published numbers, remarks."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from upfeat.evaluation.papers import PublishedBlock, setting_text
from upfeat.evaluation.registry import column_groups, titled_protocol
from upfeat.evaluation.tables import Ranking, Row, Table, rank_methods
from upfeat.evaluation.tables.grid import class_grid, markdown_grid, markdown_table, score_grid

_LEGEND = (
    "Mean ± sample deviation over the seeds. **Best** and *second best* of each column; ↑ higher "
    "is better, ↓ lower is better. Time is that of all stages together on the machine named in "
    "the files, not of the upsampler alone."
)


def results_page(
    tables: Sequence[Table],
    *,
    note: str = "",
    link: str = "",
    remarks: str = "",
    classes: bool = False,
) -> str:
    """Return the page.

    Args:
        tables: of :func:`upfeat.evaluation.tables.build_tables`.
        note: a first line, such as who wrote the page.
        link: relative path from the page to the folder of the results.
        remarks: Markdown by hand; what has no heading comes first, a section whose ``##`` heading
            is that of a task follows its tables, the others come last.
        classes: show the IoU of each class, too.
    """
    sections = split_remarks(remarks)
    parts = [f"{note}# Results\n", f"{_LEGEND}\n"]
    if link:
        parts.append(f"Every setting, seed, version and fingerprint is in [`{link}`]({link}).\n")
    if "" in sections:
        parts.append(sections.pop(""))
    ranking = rank_methods(tables)
    if len(ranking.tables) > 1:
        parts.append(f"## Mean rank\n\n{_ranking_table(ranking)}")
    for title, members in groupby(tables, key=lambda table: table.protocol.title):
        parts.append(f"## {title}\n")
        parts += [_section(table, classes) for table in members]
        if title in sections:
            parts.append(sections.pop(title))
    parts += [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n".join(parts)


def split_remarks(text: str) -> dict[str, str]:
    """Return the sections of a Markdown text by their ``##`` heading; the first may have none."""
    head, *rest = re.split(r"^## +(.+)$\n?", text, flags=re.MULTILINE)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    found = {"": head} | {title.strip(): body for title, body in sections.items()}
    return {title: f"{body.strip()}\n" for title, body in found.items() if body.strip()}


def _section(table: Table, classes: bool) -> str:
    """Return heading, settings, command, table and published numbers."""
    parts = [f"### {table.title}\n"]
    if table.quick_look:
        parts.append("A quick look at some images only: no number here is to be quoted.\n")
    parts.append(f"```bash\n{table_command(table)}\n```\n")
    if facts := _facts(table):
        parts.append(f"{facts}\n")
    parts += [f"{text}\n" for text in (table.units, *table.notes) if text]
    for heading, names in column_groups(table.kinds):
        parts += [f"{heading}:\n"] if heading else []
        parts.append(markdown_grid(score_grid(table, names)))
        parts += [
            _published(block, table, [name for name in names if name in block.units])
            for block in table.published
            if not set(names).isdisjoint(block.units)
        ]
    if classes and (grid := class_grid(table)) is not None:
        parts.append(f"IoU of each class, %:\n\n{markdown_grid(grid)}")
    return "\n".join(parts)


def _facts(table: Table) -> str:
    """Return the settings that have a number or a word, in one line."""
    named = ("data", "preset", "backbone", "splits", "limit", "classifier")
    facts = [
        f"{name.replace('_', ' ')}: {setting_text(value, name)}"
        for name, value in table.settings.items()
        if name not in named and not isinstance(value, dict) and value is not None
    ]
    return f"Settings: {'; '.join(facts)}." if facts else ""


def _published(block: PublishedBlock, table: Table, names: Sequence[str]) -> str:
    """Return a paper's numbers, and in what they differ from ours."""
    head = [block.source, *(table.protocol.kind(name).heading for name in names)]
    rows = [
        [label, *("-" if name not in found else f"{found[name]:g}" for name in names)]
        for label, found in block.rows
        if not found.keys().isdisjoint(names)
    ]
    return (
        f"Published ([{block.source}](https://arxiv.org/abs/{block.arxiv})), not measured here. "
        f"{table.remark(block)}\n\n{markdown_table(head, rows)}"
    )


def _ranking_table(ranking: Ranking) -> str:
    """Return the ranks, and which methods have no place."""
    head = ["upsampler", "mean rank ↓", *ranking.headings]
    rows = []
    for row in ranking.rows:
        mark = {1: "**", 2: "*"}.get(row.place or 0, "")
        mean = "-" if row.mean is None else f"{mark}{row.mean:.2f}{mark}"
        ranks = ["-" if rank is None else f"{rank:g}" for rank in row.ranks]
        rows.append([f"`{row.name}`", mean, *ranks])
    return f"{ranking.remark}\n\n{markdown_table(head, rows)}"


# -- the command of a table ----------------------------------------------------------------------

_GIVEN = ("data", "preset", "seeds", "limit", "reader")  # settings with an option of their own
_OWN = ("reader", "input_size")  # of a set of the user's own: the size follows its images


def table_command(table: Table) -> str:
    """Return the ``upfeat eval`` call that gives a table's results.

    ``--set`` names every setting that is not the preset's. What the results do not hold stands in
    capitals: the folder of a method that was given as one, or of a teacher.
    """
    first = ["upfeat", "eval", table.task]
    if table.backbone:
        first += ["--backbone", table.backbone]
    if table.data:
        reader = table.settings.get("reader") or table.data
        first += ["--data", reader, "--root", f"data/{table.data}"]
    if table.preset and titled_protocol(table.task).presets:
        first += ["--preset", table.preset]
    if table.settings.get("teacher"):
        first += ["--teacher", "FOLDER"]
    if trained_on := table.settings.get("trained_on"):
        names = [name.partition("/")[0] for name in trained_on]
        first += ["--train", ",".join(f"{name}=data/{name}" for name in names)]
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
    own = {}
    if table.settings.get("reader") is not None:
        own = {name: table.settings[name] for name in _OWN if name in table.settings}
    try:
        settings = titled_protocol(table.task).settings(table.preset, table.data, **own)
    except ValueError:
        return {}  # no such protocol, preset or set in this version
    size = type(settings).model_fields.get("input_size")
    asked = {"input_size"} if own and size is not None and size.is_required() else set()
    return {
        name: table.settings[name]
        for name, value in settings.model_dump(mode="json").items()
        if name not in _GIVEN
        and name in table.settings
        and (table.settings[name] != value or name in asked)
    }
