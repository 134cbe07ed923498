"""Results side by side: what may be compared in one table, best and second best.

Only like stands with like: results share a table if task, data, preset, backbone and all other
settings agree, except those that a method has of its own (:data:`OWN_SETTINGS`). What tells two
tables of one heading apart is said in both.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from upfeat.evaluation.papers import PublishedBlock, differences, published_for, setting_text
from upfeat.evaluation.registry import Protocol, ScoreKind, titled_protocol, unit_text
from upfeat.evaluation.results import Result, Score

__all__ = [
    "OWN_SETTINGS",
    "RankRow",
    "Ranking",
    "Row",
    "Table",
    "build_tables",
    "gather_results",
    "rank_methods",
]

PathLike = str | os.PathLike[str]

OWN_SETTINGS = frozenset({"upsampler", "seeds", "output_size", "head_before_upsampling"})
"""Settings that may differ between the rows of a table."""


@dataclass(frozen=True)
class Row:
    """One result in its table.

    Attributes:
        label: what the user calls the method.
        note: what tells it from a row of the same label, or its seeds where they differ.
        result: numbers and settings.
        places: score to 1 (best) or 2 (second best); equal values share a place.
        rank: by the table's headline, equal values sharing the mean; None without that score.
    """

    label: str
    result: Result
    note: str = ""
    places: Mapping[str, int] = field(default_factory=dict)
    rank: float | None = None

    @property
    def name(self) -> str:
        """Label and note."""
        return f"{self.label} ({self.note})" if self.note else self.label

    @property
    def seconds(self) -> float | None:
        """Of all stages together; None if none was timed."""
        return sum(self.result.seconds.values()) if self.result.seconds else None


@dataclass(frozen=True)
class Table:
    """Results that may be compared.

    Attributes:
        task: the protocol.
        data: the set.
        preset: of the protocol; empty if it has none.
        backbone: its name.
        settings: those that all rows share.
        variant: what tells it from another table of this heading; empty where there is none.
        scores: names, in the order of the results.
        headline: the score that ranks, or None.
        rows: best first.
        published: numbers of papers for this task and set.
    """

    task: str
    data: str
    preset: str
    backbone: str
    settings: Mapping[str, Any]
    variant: str
    scores: tuple[str, ...]
    headline: str | None
    rows: tuple[Row, ...]
    published: tuple[PublishedBlock, ...]

    @property
    def protocol(self) -> Protocol:
        """Headings, directions and units of the scores."""
        return titled_protocol(self.task)

    @property
    def kinds(self) -> dict[str, ScoreKind]:
        """How each of ``scores`` is read."""
        return {name: self.protocol.kind(name) for name in self.scores}

    @property
    def title(self) -> str:
        """Data, backbone and what else tells this table from others of its task."""
        parts = (self.data, self.preset, self.backbone.rsplit("/", 1)[-1], self.variant)
        return " · ".join(part for part in parts if part)

    @property
    def quick_look(self) -> bool:
        """Whether only some images were used, so that no number is to be quoted."""
        return self.settings.get("limit") is not None

    def unit(self, score: str) -> str:
        """Return the unit of a column: ``%``, another one or nothing."""
        unit = self.protocol.kind(score).unit
        if unit is None:
            units = {row.result.unit for row in self.rows if score in row.result.scores}
            unit = "/".join(sorted(text.partition(";")[0] for text in units))
        return unit_text(unit)

    def heading(self, score: str) -> str:
        """Return the heading of a column, with its unit and an arrow towards the better."""
        return replace(self.protocol.kind(score), unit=self.unit(score)).column("")

    @property
    def units(self) -> str:
        """What a result says of its numbers where that is more than a unit."""
        texts = dict.fromkeys(row.result.unit for row in self.rows if ";" in row.result.unit)
        return f"Numbers: {' / '.join(texts)}." if texts else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What single results say of themselves, ``details["note"]``, a sentence each."""
        said = {row.label: row.result.details.get("note") for row in self.rows}
        return tuple(f"{label}: {note}." for label, note in said.items() if note)

    def remark(self, block: PublishedBlock) -> str:
        """Say in what published numbers differ from this table's, and what their paper adds."""
        apart = differences(block.setting, self.rows[0].result.settings)
        for score, unit in block.units.items():
            theirs, here = unit_text(unit) or "fraction", self.unit(score) or "fraction"
            if theirs != here:
                heading = self.protocol.kind(score).heading
                apart.append(f"{heading} in units of {theirs} (here: {here})")
        note = f" {block.note}" if block.note else ""
        return f"What differs: {'; '.join(apart) or 'no setting that is known'}.{note}"


def gather_results(paths: Iterable[PathLike]) -> list[Result]:
    """Read results from files and folders; of two with equal settings the newer one counts.

    Args:
        paths: JSON files, or folders that hold some directly.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is no result, or a folder holds none; the message names it.
    """
    newest: dict[str, Result] = {}
    for path in map(Path, paths):
        for file in _result_files(path):
            result = Result.load(file)
            key = json.dumps([result.task, result.label, result.settings], sort_keys=True)
            known = newest.get(key)
            if known is None or _date(result) > _date(known):
                newest[key] = result
    return list(newest.values())


def _result_files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
        if not found:
            raise ValueError(f"no results (*.json) in {path}; upfeat eval TASK --out writes them")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder at {path}; give what upfeat eval --out wrote")
    return [path]


def _date(result: Result) -> str:
    return str(result.environment.get("date", ""))


def build_tables(results: Iterable[Result]) -> list[Table]:
    """Return a table for each task, data, preset, backbone and set of shared settings.

    Example:
        >>> from upfeat.evaluation.results import Result, Score
        >>> from upfeat.evaluation.tables import build_tables
        >>> def probe(label: str, miou: float) -> Result:
        ...     settings = {"data": "msrc", "upsampler": {"name": label}}
        ...     scores = {"miou": Score.of([miou])}
        ...     return Result(task="seg-probe", label=label, settings=settings, scores=scores)
        >>> (table,) = build_tables([probe("nearest", 68.0), probe("jafar", 80.0)])
        >>> [(row.label, row.rank) for row in table.rows]
        [('jafar', 1.0), ('nearest', 2.0)]
    """
    groups: dict[tuple[str, ...], dict[str, list[Result]]] = {}
    for result in results:
        shared = json.dumps(_shared_settings(result), sort_keys=True)
        groups.setdefault(_heading(result), {}).setdefault(shared, []).append(result)
    tables = []
    for heading in sorted(groups):
        variants = groups[heading]
        texts = _variant_texts([json.loads(shared) for shared in variants])
        for (shared, members), text in zip(variants.items(), texts, strict=True):
            tables.append(_table(heading, json.loads(shared), text, members))
    return tables


def _heading(result: Result) -> tuple[str, ...]:
    """Return task, data, preset and backbone."""
    settings = result.settings
    backbone = settings.get("backbone", settings.get("classifier"))
    names = (settings.get("data"), settings.get("preset"), backbone)
    return (result.task, *map(_name, names))


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("name")
    return "" if value is None else str(value)


def _shared_settings(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.settings.items() if key not in OWN_SETTINGS}


def _variant_texts(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say for each of several sets of settings what tells it from the others."""
    if len(variants) == 1:
        return [""]
    names = sorted({name for variant in variants for name in variant})
    telling = [
        name
        for name in names
        if any(variant.get(name) != variants[0].get(name) for variant in variants)
    ]
    return [
        ", ".join(
            f"{name.replace('_', ' ')} {setting_text(variant.get(name), name)}" for name in telling
        )
        for variant in variants
    ]


def _table(
    heading: tuple[str, ...], settings: Mapping[str, Any], variant: str, results: list[Result]
) -> Table:
    names = tuple(dict.fromkeys(name for result in results for name in result.scores))
    shown = tuple(name for name in names if not _repeats(name, results))
    protocol = titled_protocol(heading[0])
    best_by = protocol.ranked_by(shown)
    places = {name: _places(name, protocol.kind(name), results) for name in shown}
    ranks: list[float | None] = [None] * len(results)
    if best_by is not None:
        ranks = _ranks([_mean(result, best_by) for result in results], protocol.kind(best_by))
    ranked = []
    for i, (result, note) in enumerate(zip(results, _notes(results), strict=True)):
        own = {name: place[i] for name, place in places.items() if i in place}
        ranked.append(Row(result.label, result, note, own, ranks[i]))
    ranked.sort(key=lambda row: (row.rank is None, row.rank or 0.0, row.name))
    task, data, preset, backbone = heading
    unknown = settings.get("reader") is not None  # whatever it is called, no paper printed it
    published = () if unknown else tuple(published_for(task, data or preset, shown))
    parts = (task, data, preset, backbone, settings, variant, shown, best_by)
    return Table(*parts, tuple(ranked), published)


def _repeats(name: str, results: Sequence[Result]) -> bool:
    """Whether a score of labelled classes only says what the score of all classes says."""
    base = name.removesuffix("_labelled")
    return base != name and all(
        name not in result.scores or result.scores.get(base) == result.scores[name]
        for result in results
    )


def _notes(results: Sequence[Result]) -> list[str]:
    """Say what tells rows of one label apart, and in which own settings a row is unusual."""
    labels = [result.label for result in results]
    notes = [[_weights(r)] if labels.count(r.label) > 1 else [] for r in results]
    for name in sorted(OWN_SETTINGS - {"upsampler"}):
        values = [result.settings.get(name) for result in results]
        usual = max(values, key=values.count)
        for note, value in zip(notes, values, strict=True):
            if value != usual and value is not None:
                note.append(f"{name.replace('_', ' ')} {setting_text(value, name)}")
    return [", ".join(note) for note in notes]


def _weights(result: Result) -> str:
    method = result.settings.get("upsampler")
    weights = method.get("weights") if isinstance(method, Mapping) else None
    return f"weights {str(weights)[:8]}" if weights else _date(result)


def _mean(result: Result, name: str) -> float | None:
    """Return a score's mean; None if it is missing or not a number."""
    score: Score | None = result.scores.get(name)
    return None if score is None or score.mean != score.mean else score.mean


def _places(name: str, kind: ScoreKind, results: Sequence[Result]) -> dict[int, int]:
    """Return the index of the best results (1) and, of three or more, of the second best (2)."""
    higher = kind.higher_is_better
    means = {
        i: mean for i, result in enumerate(results) if (mean := _mean(result, name)) is not None
    }
    if higher is None or len(means) < 2:
        return {}
    order = sorted(set(means.values()), reverse=higher)
    counted = order[: 2 if len(means) > 2 else 1]
    first = sum(mean == order[0] for mean in means.values())
    if first > 1:  # two best leave no second
        counted = counted[:1]
    return {i: counted.index(mean) + 1 for i, mean in means.items() if mean in counted}


def _ranks(means: Sequence[float | None], kind: ScoreKind) -> list[float | None]:
    """Return ranks from 1; equal values share the mean of theirs."""
    sign = -1 if kind.higher_is_better else 1
    known = sorted(sign * mean for mean in means if mean is not None)
    return [
        None if mean is None else known.index(sign * mean) + (known.count(sign * mean) + 1) / 2
        for mean in means
    ]


# -- ranks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankRow:
    """Ranks of one method.

    Attributes:
        name: of the row in the tables.
        ranks: in each table; None where it is missing.
        mean: over all tables; None if one lacks it, for a mean over others says nothing.
        place: 1 or 2 by that mean.
    """

    name: str
    ranks: tuple[float | None, ...]
    mean: float | None
    place: int | None = None


@dataclass(frozen=True)
class Ranking:
    """Ranks over several tables, by the headline of each.

    Attributes:
        tables: those with at least two rows that are ranked by quality, of the backbone that most
            of them share (methods are trained for one), of all where none has the most.
        rows: methods that every table has first, by their mean rank; then the others.
    """

    tables: tuple[Table, ...]
    rows: tuple[RankRow, ...]

    @property
    def remark(self) -> str:
        """Which score ranks, and what a missing place means."""
        used = dict.fromkeys(
            f"{table.task} by {table.protocol.kind(table.headline).heading}"
            for table in self.tables
            if table.headline is not None
        )
        text = f"Rank in each table: {', '.join(used)}."
        backbones = {table.backbone for table in self.tables} - {""}
        if len(backbones) == 1:
            text += f" Tables of {backbones.pop()} only."
        if any(row.mean is None for row in self.rows):
            text += " A method that a table lacks has no mean rank."
        return text

    @property
    def headings(self) -> tuple[str, ...]:
        """A heading for each table, no longer than needed to tell them apart."""
        headings: list[str] = []
        for names in (("data",), ("data", "preset"), ("data", "preset", "backbone", "variant")):
            headings = [
                " · ".join(filter(None, (t.task, *(getattr(t, name) for name in names))))
                for t in self.tables
            ]
            if len(set(headings)) == len(headings):
                break
        return tuple(headings)


def rank_methods(tables: Iterable[Table]) -> Ranking:
    """Return the mean rank of each method that every table has; the others follow without one.

    Quick looks, tables of costs and those of other backbones than most have do not count.
    """
    counted = tuple(
        table
        for table in tables
        if not table.quick_look
        and table.headline is not None
        and not table.protocol.kind(table.headline).cost
        and sum(row.rank is not None for row in table.rows) > 1
    )
    usual = Counter(table.backbone for table in counted).most_common(2)
    if len(usual) == 2 and usual[0][1] > usual[1][1]:
        counted = tuple(table for table in counted if table.backbone == usual[0][0])
    ranks: dict[str, list[float | None]] = {}
    for index, table in enumerate(counted):
        labels = [row.label for row in table.rows]
        for row in table.rows:
            name = row.name if labels.count(row.label) > 1 else row.label
            if row.rank is not None:
                ranks.setdefault(name, [None] * len(counted))[index] = row.rank
    rows = []
    for name, own in ranks.items():
        known = [rank for rank in own if rank is not None]
        mean = sum(known) / len(known) if len(known) == len(own) else None
        rows.append(RankRow(name, tuple(own), mean))
    means = sorted({row.mean for row in rows if row.mean is not None})
    placed = means[: min(2, len(means) - 1)] if len(means) > 1 else []
    rows = [
        replace(row, place=placed.index(row.mean) + 1) if row.mean in placed else row
        for row in rows
    ]
    rows.sort(key=lambda row: (row.mean is None, row.mean or 0.0, row.name))
    return Ranking(counted, tuple(rows))
