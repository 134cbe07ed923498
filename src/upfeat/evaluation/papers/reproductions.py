"""What ``upfeat reproduce`` found for a table or figure, and a page of all of it.

One JSON file each, ``PAPER-TABLE.json``, written again after every call of a protocol, so that an
interrupted run leaves what it knew.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from upfeat._files import write_bytes
from upfeat._settings import readable_error
from upfeat.evaluation.papers import (
    PublishedFigure,
    PublishedTable,
    differences,
    published_figures,
    published_tables,
    setting_text,
)
from upfeat.evaluation.papers.plan import TableJob, needed_sets, not_ready
from upfeat.evaluation.papers.sources import SETS, paper_method
from upfeat.evaluation.registry import score_digits, titled_protocol, unit_text
from upfeat.evaluation.results import FrozenRecord, Result

# Our unit and the paper's, to what a number of ours is multiplied by.
_FACTORS = {("MB", "GB"): 1 / 1024}


class Ran(FrozenRecord):
    """One row in one call of a protocol.

    Attributes:
        row: key of the row.
        columns: numbers of the table's columns.
        values: mean of each column's score; None where the protocol has none.
        units: of these values, which may not be the paper's.
        task: the protocol.
        data: the set that was used.
        published: the paper's name of the set.
        differs: settings in which it differs from the paper.
        trained: recipes that were trained for it here.
        problem: why there is no number.
    """

    row: str
    columns: tuple[int, ...]
    values: tuple[float | None, ...] = ()
    units: tuple[str, ...] = ()
    task: str
    data: str = ""
    published: str = ""
    differs: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    problem: str = ""


class Reproduction(FrozenRecord):
    """All that is known of a table or figure.

    Attributes:
        id: of the table or figure.
        small: whether it is a small run, whose numbers say only that everything works.
        backbone: that was used.
        ran: a record for each row and call.
        pictures: files beside this one.
        seconds: of all runs together, also of those that were interrupted.
        environment: machine, versions, date.
    """

    schema_version: Literal[1] = 1
    id: str
    small: bool = False
    backbone: str = ""
    ran: tuple[Ran, ...] = ()
    pictures: tuple[str, ...] = ()
    seconds: float = 0.0
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.id.replace(':', '-')}.json"

    def value(self, row: str, column: int, unit: str = "") -> float | None:
        """Return our number of a cell, if there is one.

        Args:
            row: key of the row.
            column: number of the column.
            unit: that it is wanted in, where ours is another that can be converted.
        """
        for each in self.ran:
            if each.row == row and column in each.columns and each.values:
                place = each.columns.index(column)
                value = each.values[place]
                factor = _FACTORS.get((each.units[place], unit), 1.0) if each.units else 1.0
                return None if value is None else value * factor
        return None

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the record, whole or not at all, and return its path."""
        path = Path(folder) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f"{self.model_dump_json(indent=1)}\n".encode())
        return path

    @classmethod
    def seconds_before(cls, id: str, folder: str | os.PathLike[str]) -> float:
        """Return what earlier runs of a table or figure into a folder took; 0 without a record."""
        path = Path(folder) / cls(id=id).file_name
        try:
            return cls.load(path).seconds
        except (OSError, ValueError):  # none, or one that this run replaces
            return 0.0

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no such record.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            raise ValueError(
                f"{path} is no record of upfeat reproduce: {readable_error(error)}"
            ) from error


def changed_method(uses: str, *, small: bool) -> tuple[str, ...]:
    """Say in what a run's form of a method differs from the paper's; nothing where it does not.

    Args:
        uses: name in :data:`upfeat.evaluation.papers.sources.METHODS`.
        small: whether it is a small run.

    Example:
        >>> from upfeat.evaluation.papers.reproductions import changed_method
        >>> changed_method("naf", small=True), changed_method("jafar", small=True)
        (('method naf (here: naf(kernel_size=5))',), ())
    """
    method = paper_method(uses)
    used = method.used_spec(small=small)
    return () if used == method.spec else (f"method {method.spec} (here: {used})",)


def ran(
    table: PublishedTable,
    job: TableJob,
    key: str,
    result: Result,
    *,
    trained: Sequence[str] = (),
    small: bool = False,
) -> Ran:
    """Return the record of a row's result, with what differs from the paper's setting.

    Args:
        table: of the paper.
        job: the call that made it.
        key: of the row.
        result: of the protocol.
        trained: recipes that were trained for it.
        small: whether it is a small run.
    """
    row = next(each for each in job.rows if each.key == key)
    protocol = titled_protocol(job.task)
    scores = [table.columns[number].score for number in job.columns]
    means = [result.scores[name].mean if name in result.scores else None for name in scores]
    units = [protocol.kind(name).unit for name in scores]
    column = table.columns[job.columns[0]]
    setting = table.setting | column.setting | row.setting
    apart = differences(setting, result.settings)
    if job.backbone not in ("", table.backbone) and "backbone" not in setting:
        apart.insert(0, f"backbone {table.backbone} (here: {job.backbone})")
    if job.data is not None and job.data != job.published:
        apart.insert(0, f"data {job.published} (here: {job.data})")
    if column.preset and job.preset != column.preset:
        apart.append(f"preset {column.preset} (here: {job.preset})")
    apart += changed_method(row.uses, small=small)
    return Ran(
        row=key,
        columns=job.columns,
        values=tuple(None if mean is None or mean != mean else round(mean, 5) for mean in means),
        units=tuple(result.unit.partition(";")[0] if unit is None else unit for unit in units),
        task=job.task,
        data=job.data or "",
        published=job.published if job.data is not None else "",
        differs=tuple(apart),
        trained=tuple(trained),
    )


# -- tables of both ------------------------------------------------------------------------------


def comparison_rows(
    table: PublishedTable, found: Reproduction | None
) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the cells of a table, the published number beside ours.

    Args:
        table: of the paper.
        found: what was run; None for nothing.

    Example:
        >>> from upfeat.evaluation.papers import find_published
        >>> from upfeat.evaluation.papers.reproductions import comparison_rows
        >>> heads, rows = comparison_rows(find_published(["jafar:table-4"])[0], None)
        >>> heads[1], rows[3][:2]
        ('bev nuscenes simplebev IoU, %', ['JAFAR', '36.59 / -'])
    """
    heads = ["method"]
    for column in table.columns:
        heading = titled_protocol(column.task).kind(column.score).heading
        name = {"iou": "IoU", "miou": "mIoU"}.get(heading, heading)
        unit = unit_text(column.unit)
        variant = column.preset if column.task in ("bev", "open-vocabulary", "efficiency") else ""
        size = column.changes.get("crop_size")
        data = "" if column.task == "efficiency" else column.data[0]
        parts = (column.task, data, variant, f"{size} px" if size else "", name)
        text = " ".join(part for part in parts if part)
        heads.append(f"{text}, {unit}" if unit else text)
    rows = []
    for row in table.rows:
        cells = [", ".join(filter(None, (row.method, setting_text(row.setting))))]
        for number, (published, column) in enumerate(zip(row.values, table.columns, strict=True)):
            own = None if found is None else found.value(row.key, number, column.unit)
            cells.append(f"{_number(published)} / {_number(own)}")
        rows.append(cells)
    return heads, rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.{score_digits([value])}f}"


def shared_differences(found: Reproduction) -> list[str]:
    """Return each difference of a run once, with the calls and rows that it is of.

    Example:
        >>> from upfeat.evaluation.papers.reproductions import Ran, Reproduction, shared_differences
        >>> fields = {"columns": (0,), "task": "vos"}
        >>> small = Ran(row="a", data="x", differs=("batch 4 (here: 2)",), **fields)
        >>> other = Ran(row="a", data="y", differs=("batch 4 (here: 2)", "images 9"), **fields)
        >>> shared_differences(Reproduction(id="jafar:table-1", ran=(small, other)))
        ['everywhere: batch 4 (here: 2)', 'vos y: images 9']
    """
    done = [each for each in found.ran if not each.problem]
    members: dict[str, list[Ran]] = {}
    for each in done:
        for text in each.differs:
            members.setdefault(text, []).append(each)
    groups: dict[tuple[int, ...], list[str]] = {}
    for text, those in members.items():
        groups.setdefault(tuple(done.index(each) for each in those), []).append(text)
    lines = [
        f"{_where([done[number] for number in those], done)}: {'; '.join(texts)}"
        for those, texts in sorted(groups.items(), key=lambda item: len(item[0]) < len(done))
    ]
    return lines or ["none known"]


def _where(those: Sequence[Ran], done: Sequence[Ran]) -> str:
    """Name calls, and their columns or rows where it is not all of them."""
    places = list(dict.fromkeys((each.task, each.data) for each in those))
    here = [each for each in done if (each.task, each.data) in places]
    text = ", ".join(f"{task} {data}".strip() for task, data in places)
    if len(here) == len(done):
        text = ""
    if len(those) == len(here):
        return text or "everywhere"
    rows = list(dict.fromkeys(each.row for each in those))
    if len(rows) == len({each.row for each in here}):  # in some columns of theirs
        columns = sorted({number for each in those for number in each.columns})
        names = ", ".join(str(number + 1) for number in columns)
        part = f"column{'s' * (len(columns) > 1)} {names}"
    else:
        part = ", ".join(rows)
    return f"{text} ({part})" if text else part


# -- the page ------------------------------------------------------------------------------------

_HEAD = """# Tables and figures of the papers

Every table and figure that compares methods in the papers of JAFAR, LoftUp, NAF and AnyUp is one
command, `upfeat reproduce NAME`. `upfeat reproduce --list` shows the data and weights that each
needs and which of them were found. Give the folder of a data set with `--root SET=DIR`, or a folder
that contains all of them with `--root data=DIR`. Weights are looked for in the usual places, those
of backbones also in `--root weights=DIR`. Methods without published weights are trained first.

`--small` runs the same code with small data sets, the bundled backbone, a few images and a few
training steps. **Small runs only show that the code works; their scores say nothing about the
methods.** Heads trained on four images, a CLIP with random weights and a bird's-eye-view network
after two epochs on one key frame are near chance, and methods that predict a single class have
equal scores. Seconds and milliseconds are wall time on two shared cores, several times what a core
of its own would take. An interrupted run, even by `kill -9`, continues with what is missing and
gives the same scores.

A cell is *published / small run here*; `-` means no number.
"""


def reproduce_page(records: Iterable[Reproduction], *, note: str = "") -> str:
    """Return the Markdown page of all tables and figures behind a ``note``.

    A table without a record is listed all the same.
    """
    known = {record.id: record for record in records}
    parts = [note + _HEAD]
    for table in published_tables():
        parts.append(_table_section(table, known.get(table.id)))
    parts.append("## Figures\n")
    for figure in published_figures():
        parts.append(_figure_section(figure, known.get(figure.id)))
    return "\n".join(parts).rstrip() + "\n"


def _needs(item: PublishedTable | PublishedFigure) -> str:
    parts = []
    for name, purpose in needed_sets(item).items():
        facts = SETS[name]
        size = f", {facts.gigabytes:g} GB" if facts.gigabytes else ""
        parts.append(f"`{name}` ({facts.title}, {facts.where}{size}; {purpose})")
    data = "; ".join(parts) or "no data"
    backbone = f" Backbone `{item.backbone}`." if item.backbone else ""
    hours = f" About {item.gpu_hours:g} GPU hours on one A100 (our estimate)."
    return f"Needs: {data}.{backbone}{hours}"


def _table_section(table: PublishedTable, found: Reproduction | None) -> str:
    heads, rows = comparison_rows(table, found)
    link = f"[arXiv {table.arxiv}](https://arxiv.org/abs/{table.arxiv})"
    call = f"`upfeat reproduce {table.id} --root data=DIR`"
    lines = [f"## {table.paper}, {table.source}: {table.title}", ""]
    lines += [f"{link}; {call}. {table.note}".rstrip(), "", _needs(table), ""]
    waits = {not_ready(column.task, column.preset) for column in table.columns} - {None}
    if waits:
        lines += [f"Waits for: {'; '.join(sorted(map(str, waits)))}.", ""]
    if table.setting:
        lines += [f"Setting of the paper: {setting_text(table.setting)}.", ""]
    lines += [_markdown(heads, rows), ""]
    lines += _what_ran(found)
    return "\n".join(lines)


def _what_ran(found: Reproduction | None) -> list[str]:
    """Return what a run took, in what it differs and what failed."""
    if found is None:
        return ["Not run here yet.", ""]
    lines = [
        f"Run here: small, `{found.backbone or 'no backbone'}`, {found.seconds:.0f} s on "
        f"{found.environment.get('processor', 'an unknown processor')}. Differences:",
        "",
        *(f"- {text}" for text in shared_differences(found)),
        "",
    ]
    trained: dict[tuple[str, ...], dict[str, None]] = {}
    for each in found.ran:
        if each.trained:
            trained.setdefault(each.trained, {})[each.row] = None
    if trained:
        recipes = "; ".join(
            f"{', then '.join(names)} ({', '.join(rows)})" for names, rows in trained.items()
        )
        lines += [f"Trained for it, a few steps each: {recipes}.", ""]
    problems = dict.fromkeys(f"{each.row}: {each.problem}" for each in found.ran if each.problem)
    if problems:
        lines += ["Without a number:", "", *(f"- {text}" for text in problems), ""]
    return lines


def _figure_section(figure: PublishedFigure, found: Reproduction | None) -> str:
    call = f"`upfeat reproduce {figure.id} --root data=DIR`"
    lines = [f"### {figure.paper}, {figure.source}: {figure.title}", ""]
    lines += [f"{call}: {', '.join(figure.methods)}. {figure.note}".rstrip(), ""]
    lines += [_needs(figure), ""]
    if found is None:
        lines += ["Not run here yet.", ""]
    elif found.pictures:
        lines += [f"Run here, small: {len(found.pictures)} pictures in {found.seconds:.0f} s.", ""]
    if found is not None:
        for each in found.ran:
            lines += [f"- {each.row}: {text}" for text in (*each.differs, each.problem) if text]
    return "\n".join(lines)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def by_id(folder: str | os.PathLike[str]) -> Mapping[str, Reproduction]:
    """Return the records in a folder of ``upfeat reproduce --out``, by their table or figure."""
    records = (Reproduction.load(path) for path in sorted(Path(folder).glob("*-*.json")))
    return {record.id: record for record in records}
