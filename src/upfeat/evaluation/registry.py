"""The registry of protocols: what the command line, the tables and the report know of each.

A file in :mod:`upfeat.evaluation.protocols` ends in ``register_protocol(Protocol(...))``; nothing
else has to be told of it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.config import JsonDict

from upfeat.errors import UnknownNameError
from upfeat.evaluation.results import Result, Score

if TYPE_CHECKING:
    from upfeat.backbones import Backbone

__all__ = [
    "Option",
    "Presets",
    "Progress",
    "Protocol",
    "ProtocolConfig",
    "Request",
    "ScoreKind",
    "StoredFeatures",
    "column_groups",
    "cost",
    "get_protocol",
    "higher",
    "known_entry",
    "list_protocols",
    "lower",
    "prefixed",
    "register_protocol",
    "score_digits",
    "score_text",
    "silent",
    "titled_protocol",
    "unit_text",
]

ConfigT = TypeVar("ConfigT", bound=BaseModel)
ValueT = TypeVar("ValueT")
Progress = Callable[[str, str, int, int], None]
"""What a protocol calls with label, stage, done and total."""

_PROTOCOLS: dict[str, "Protocol"] = {}


def silent(label: str, stage: str, done: int, total: int) -> None:
    """Show no progress."""


# -- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreKind:
    """How a score is read.

    Attributes:
        heading: of its column.
        higher_is_better: None where neither way is.
        unit: where it is not the result's.
        cost: it says what a method costs, not how good it is.
        group: heading of a table of its own for the columns that share it.
    """

    heading: str
    higher_is_better: bool | None = None
    unit: str | None = None
    cost: bool = False
    group: str = ""

    @property
    def arrow(self) -> str:
        """``↑`` where higher is better, ``↓`` where lower is, else nothing."""
        if self.higher_is_better is None:
            return ""
        return "↑" if self.higher_is_better else "↓"

    def column(self, unit: str) -> str:
        """Return the heading with unit and arrow; the unit is the result's if it has none."""
        text = unit_text(unit if self.unit is None else self.unit)
        return f"{self.heading}{f', {text}' if text else ''} {self.arrow}".strip()


def higher(heading: str, unit: str | None = None) -> ScoreKind:
    """Return a score of which more is better; the unit is the result's if none is given."""
    return ScoreKind(heading, True, unit)


def lower(heading: str, unit: str | None = None) -> ScoreKind:
    """Return a score of which less is better; the unit is the result's if none is given."""
    return ScoreKind(heading, False, unit)


def cost(heading: str, unit: str) -> ScoreKind:
    """Return what a method costs: ranked last, and never beside qualities."""
    return ScoreKind(heading, False, unit, cost=True)


def prefixed(scores: Mapping[str, ScoreKind], name: str, heading: str) -> dict[str, ScoreKind]:
    """Return scores with something before each name and heading.

    Example:
        >>> from upfeat.evaluation.registry import higher, prefixed
        >>> prefixed({"miou": higher("mIoU")}, "band_", "boundary ")["band_miou"].heading
        'boundary mIoU'
    """
    return {
        f"{name}{score}": replace(kind, heading=f"{heading}{kind.heading}")
        for score, kind in scores.items()
    }


def unit_text(unit: str) -> str:
    """Return a unit as it stands in a heading: ``%`` for percent, nothing for a fraction."""
    return {"percent": "%", "fraction": ""}.get(unit, unit)


def column_groups(
    kinds: Mapping[str, ScoreKind], most: int = 9
) -> list[tuple[str, tuple[str, ...]]]:
    """Split more columns than fit a page into tables: scores at several sizes apart from others.

    Returns:
        Heading and names of each table; up to ``most`` columns are one, without a heading.

    Example:
        >>> from upfeat.evaluation.registry import column_groups, get_protocol
        >>> names = ["parameters", "ms_forward_56", "ms_forward_112"]
        >>> column_groups({name: get_protocol("efficiency").kind(name) for name in names}, most=2)
        [('', ('parameters',)), ('forward time, ms', ('ms_forward_56', 'ms_forward_112'))]
    """
    if len(kinds) <= most:
        return [("", tuple(kinds))]
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind.group, []).append(name)
    return [(heading, tuple(members)) for heading, members in groups.items()]


def score_text(score: Score, *, digits: int | None = None) -> str:
    """Return mean and deviation, with :func:`score_digits` of the mean if none are given.

    Example:
        >>> from upfeat.evaluation.results import Score
        >>> from upfeat.evaluation.registry import score_text
        >>> score_text(Score.of([70.0, 72.0])), score_text(Score.of([0.01234]))
        ('71.00 ± 1.41', '0.0123')
    """
    if digits is None:
        digits = score_digits([score.mean])
    if score.deviation is None:
        return f"{score.mean:.{digits}f}"
    return f"{score.mean:.{digits}f} ± {score.deviation:.{digits}f}"


def score_digits(values: Sequence[float]) -> int:
    """Return how many digits behind the point a column of values needs to show three figures."""
    largest = max((abs(value) for value in values if value == value), default=1.0)
    for limit, digits in ((1000, 0), (1, 2), (0.1, 3), (0.01, 4)):
        if largest >= limit:
            return digits
    return 2 if largest == 0 else 5


# -- settings ------------------------------------------------------------------------------------


StoredFeatures = Literal["float16", "float32"]
"""How low-resolution features are kept on disk."""

STORED_IF_SET: JsonDict = {"stored": "if set"}
"""``json_schema_extra`` of a later setting that stands in a result only where it is used, so that
results of before it stay those of equal settings."""


class ProtocolConfig(BaseModel):
    """Settings of a protocol; all of them stand in the result. None is unknown, none changes.

    Attributes:
        preset: the protocol that the settings come from.
        data: name of the set.
        limit: at most so many images or videos (a quick look, no result to quote).
        reader: how a set of the user's own was read, ``folder``; None, and left out of the stored
            settings, for a set that has a reader of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    data: str
    limit: PositiveInt | None = None
    reader: Literal["folder"] | None = Field(default=None, json_schema_extra=STORED_IF_SET)

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, stored = type(self).model_fields, dump(self)
        return {
            name: value
            for name, value in stored.items()
            if value or name not in fields or fields[name].json_schema_extra != STORED_IF_SET
        }


def known_entry(kind: str, name: str, table: Mapping[str, ValueT]) -> ValueT:
    """Return an entry of a table of presets, of data sets, or whatever ``kind`` says.

    Raises:
        UnknownNameError: there is none of that name; the message lists close ones.
    """
    if name not in table:
        raise UnknownNameError(kind, name, table)
    return table[name]


class Presets(Generic[ConfigT]):
    """A function that returns a protocol's settings: ``presets(preset, data, **changes)``.

    A call raises :class:`~upfeat.errors.UnknownNameError` where preset or set is unknown, and a
    ``ValueError`` for an impossible value.

    Args:
        config: class of the settings.
        presets: what each preset changes.
        sets: names of the data sets; none for a protocol without data. If ``folder`` is one, a set
            of the user's own (``reader="folder"``) may have any name.
        of_sets: what changes for a set, by its name or by (preset, set).

    Example:
        >>> from upfeat.evaluation.protocols.vos import vos_preset
        >>> vos_preset("naf", "davis2017", factor=4).guidance_resize
        'bicubic'
    """

    def __init__(
        self,
        config: type[ConfigT],
        presets: Mapping[str, Mapping[str, Any]],
        sets: Iterable[str] = (),
        of_sets: Mapping[Any, Mapping[str, Any]] | None = None,
    ) -> None:
        self.config, self.presets = config, presets
        self.sets, self.of_sets = tuple(sets), of_sets or {}

    def __call__(self, preset: str, data: str | None = None, **changes: Any) -> ConfigT:
        """Return the settings of a preset for a data set, with changes of fields."""
        settings = {"preset": preset, **known_entry("preset", preset, self.presets)}
        if self.sets:
            if data not in self.sets and changes.get("reader") not in self.sets:
                raise UnknownNameError("data set", str(data), self.sets)
            settings |= {"data": data, **self.of_sets.get(data, {})}
            settings |= self.of_sets.get((preset, data), {})
        return self.config(**settings | changes)


# -- protocols -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """An option of ``upfeat eval NAME`` that only this protocol has.

    Attributes:
        name: of the keyword in :attr:`Request.options`; ``--keep-pixels`` for ``keep_pixels``.
        help: one sentence.
        kind: a text, the path of something that exists, or a flag without a value.
        default: where it is not given.
    """

    name: str
    help: str
    kind: Literal["text", "path", "flag"] = "text"
    default: str | bool | None = None


@dataclass(frozen=True)
class Request:
    """What a call of ``upfeat eval NAME`` says beside settings, backbone and methods.

    Attributes:
        data: name of the set; None for a protocol without data.
        root: folder of it.
        cache: folder of features and unfinished work.
        device: where everything runs.
        options: the protocol's own.
    """

    data: str | None
    root: Path
    cache: Path
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol: its facts, its settings and how it is run.

    Attributes:
        name: of the command, and :attr:`upfeat.evaluation.results.Result.task`.
        title: heading of its tables.
        summary: one sentence for the help.
        scores: name in a result to how it is read, in the order of the columns. A score at several
            sizes (``ms_forward_448``) is declared without its number.
        headline: the scores that rank a table; the first that a result has counts.
        configure: returns the settings from ``preset=`` (where there are presets), ``data=`` (where
            there are sets) and changes of fields.
        presets: names; the first is the usual one.
        data: names of sets, for the help; empty for a protocol without data.
        run: called by keyword with ``config``; ``backbone`` and ``methods``, on the device where
            everything runs; ``out``, the folder of the results; ``on_progress``, called with
            label, stage, done and total; and what ``inputs`` returns, mostly whole splits, of which
            ``limit`` and the like count, and a ``cache``, the folder of features and of unfinished
            work. Returns a result for each method, in their order, and has written each to ``out``
            as soon as it was known; those of equal settings are read.
        inputs: opens the data of a request: further arguments of ``run``.
        own_settings: further settings of a preset for a set of the user's own in a folder, where
            ``data`` names ``folder``.
        backbone: builds the network from its name and file of weights; None for any backbone.
        width: channels of the features by the settings where no backbone is named; None for a
            protocol that needs a backbone.
        weights: of a method that learns and is named without any, see
            :func:`upfeat.evaluation.methods.load_methods`.
        seeds: whether ``--seeds`` sets the seeds.
        items: what ``--limit`` counts; empty where there is no such setting.
        columns: the scores that the command prints; all of them if empty.
        caption: what is to be known below the printed table.
        options: of its own.

    Example:
        >>> from upfeat.evaluation.registry import get_protocol
        >>> vos = get_protocol("vos")
        >>> vos.title, vos.kind("j_decay").arrow, vos.settings("naf", "davis2017").context_frames
        ('Video object segmentation', '↓', 7)
    """

    name: str
    title: str
    summary: str
    scores: Mapping[str, ScoreKind]
    configure: Callable[..., BaseModel]
    run: Callable[..., list[Result]]
    headline: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    inputs: Callable[[Request], dict[str, Any]] = lambda request: {}
    own_settings: Callable[[str, Path], dict[str, Any]] = lambda preset, root: {}
    backbone: "Callable[[str, Path | None], Backbone] | None" = None
    width: Callable[[Any], int] | None = None
    weights: Literal["trained", "joint", "untrained"] = "trained"
    seeds: bool = False
    items: str = ""
    columns: tuple[str, ...] = ()
    caption: str = ""
    options: tuple[Option, ...] = ()

    def settings(self, preset: str, data: str | None, **changes: Any) -> BaseModel:
        """Return the settings of a preset for a set, as far as this protocol has these.

        Raises:
            ValueError: no such preset, set or field, or an impossible value.
        """
        chosen: dict[str, Any] = {"preset": preset} if self.presets else {}
        if self.data:
            chosen["data"] = data
        return self.configure(**chosen, **changes)

    def kind(self, score: str) -> ScoreKind:
        """Return how a score is read; one that is not declared is shown under its name, unranked.

        With a size behind its name, it is one of a group of columns.
        """
        if score in self.scores:
            return self.scores[score]
        stem, _, size = score.rpartition("_")
        if stem in self.scores and size.isdecimal():
            kind = self.scores[stem]
            group = f"{kind.heading}, {kind.unit}"
            return replace(kind, heading=f"{kind.heading} at {size}", group=group)
        return ScoreKind(score.replace("_", " "))

    def ranked_by(self, scores: Sequence[str]) -> str | None:
        """Return the score that ranks: the headline, else one with a direction, costs last."""
        declared = [name for name in self.headline if name in scores]
        directed = [name for name in scores if self.kind(name).higher_is_better is not None]
        directed.sort(key=lambda name: self.kind(name).cost)
        return next(iter(declared + directed), None)

    def command_facts(self) -> dict[str, Any]:
        """Return what ``upfeat eval NAME --help`` shows, as JSON has it."""
        return {
            "summary": self.summary,
            "presets": list(self.presets),
            "data": list(self.data),
            "backbone": self.width is None,
            "weights": self.weights,
            "seeds": self.seeds,
            "items": self.items,
            "options": [asdict(option) for option in self.options],
        }


def register_protocol(protocol: Protocol) -> None:
    """Make a protocol known to the command line, the tables and the report.

    Raises:
        ValueError: the name is taken, or a headline or printed column is no declared score.
    """
    if protocol.name in _PROTOCOLS:
        raise ValueError(f"there is a protocol {protocol.name} already; choose another name")
    unknown = {*protocol.headline, *protocol.columns} - set(protocol.scores)
    if unknown:
        raise ValueError(f"protocol {protocol.name} declares no score {', '.join(sorted(unknown))}")
    _PROTOCOLS[protocol.name] = protocol


@cache
def _import_all() -> None:
    """Import every file of the folder, each of which registers its protocol."""
    folder = importlib.import_module("upfeat.evaluation.protocols")
    for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        importlib.import_module(module.name)


def list_protocols() -> list[str]:
    """Return the names of all protocols, sorted."""
    _import_all()
    return sorted(_PROTOCOLS)


def get_protocol(name: str) -> Protocol:
    """Return a protocol by the name of its command.

    Raises:
        UnknownNameError: there is none of that name.
    """
    known = list_protocols()
    if name not in known:
        raise UnknownNameError("protocol", name, known)
    return _PROTOCOLS[name]


def titled_protocol(name: str) -> Protocol:
    """Return the protocol of a result; for one that this version lacks, one without any scores.

    Example:
        >>> from upfeat.evaluation.registry import titled_protocol
        >>> lacking = titled_protocol("tracking")
        >>> lacking.title, lacking.kind("lost_points").heading
        ('tracking', 'lost points')
    """
    if name in list_protocols():
        return _PROTOCOLS[name]

    def missing(**arguments: Any) -> Any:
        raise UnknownNameError("protocol", name, list_protocols())

    return Protocol(
        name=name, title=name, summary="", scores={}, configure=missing, run=missing, presets=("",)
    )
