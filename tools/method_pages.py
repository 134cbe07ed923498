"""Write docs/methods, docs/choose.md, README.md's table of methods, what `upfeat list` shows.

    python tools/method_pages.py            # write
    python tools/method_pages.py --check    # exit 1 if a file is out of date

The list is kept in upfeat/cli/methods.json, so that the command need not import torch.

Facts come from the registry, where each method's file enters them, from benchmarks/results/*.json
and, for docs/choose.md, from docs/results/*.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import sys
from pathlib import Path

from upfeat._files import write_bytes
from upfeat.cli.listing import baseline_notes, needs_of
from upfeat.evaluation.benchmark import BenchmarkRun, Measurement
from upfeat.evaluation.tables import Table, build_tables, gather_results
from upfeat.upsamplers.fitted import short_fit
from upfeat.upsamplers.registry import (
    get_checkpoint,
    get_class,
    list_upsamplers,
    needs_feature_dim,
)

ROOT = Path(__file__).resolve().parents[1]
LISTING = Path("src", "upfeat", "cli", "methods.json")
ABILITIES = {
    "any size": "any_size",
    "universal (no training per backbone)": "universal",
    "optimises for each image": "per_image",
    "commutes with a linear head": "linear",
}
README = "../../README.md"  # as docs/methods sees it
CHOOSE = "../choose.md"
SUMMARISED = ("kin", "anyup", "loftup", "jafar", "joint_bilateral", "guided_filter", "bilinear")
# Tables of docs/choose.md, by task and data; each gives the score that ranks in it.
SCORES = (
    ("seg-probe", "msrc"),
    ("seg-probe", "camvid"),
    ("depth-probe", "nyuv2"),
    ("normals-probe", "rgbd"),
    ("vos", "davis2016"),
)
TABLE_START = "<!-- Written by tools/method_pages.py. -->\n\n"
RESULTS_START = "<!-- Results: written by tools/method_pages.py. -->\n\n"
TABLE_END = "\n<!-- End of what tools/method_pages.py writes. -->"
PAPERS = {"JAFAR": "2506.11136", "LoftUp": "2504.14032"}
NOTE = "<!-- Written by tools/method_pages.py; edit that, or the method's file. -->\n\n"


def pages(root: Path = ROOT) -> dict[str, str]:
    """File name to content, for all of docs/methods."""
    runs = reports(root)
    names = list_upsamplers()
    return (
        {"README.md": index(names)}
        | {f"{name}.md": page(name, runs) for name in names}
        | {CHOOSE: choose(root, runs)}
    )


def reports(root: Path) -> list[tuple[str, BenchmarkRun]]:
    """The kept benchmarks, by the names of their files."""
    return [
        (path.name, BenchmarkRun.model_validate_json(path.read_text()))
        for path in sorted((root / "benchmarks" / "results").glob("*.json"))
    ]


def listing() -> str:
    """What `upfeat list` knows of the methods, as JSON."""
    methods = {}
    for name in list_upsamplers():
        info = get_class(name).info
        records = map(get_checkpoint, list_upsamplers(f"{name}.*", pretrained=True))
        methods[name] = {
            "summary": info.summary,
            "year": info.year,
            "task_agnostic": info.task_agnostic,
            "abilities": dataclasses.asdict(info.abilities),
            "weights": {
                record.tag: {
                    "channels": record.feature_dim,
                    "backbone": record.backbone,
                    "licence": record.weights_license,
                    "file": record.file.filename,
                }
                for record in records
                if record is not None
            },
        }
    return json.dumps(methods, indent=1, ensure_ascii=False) + "\n"


def readme(text: str, root: Path = ROOT) -> str:
    """README.md with its tables written anew, each between the two comments around it."""
    written = {RESULTS_START: lambda: summary(root), TABLE_START: readme_table}
    for start, content in written.items():
        if start in text:
            before, rest = text.split(start)
            text = before + start + content() + TABLE_END + rest.split(TABLE_END, 1)[1]
    return text


def summary(root: Path) -> str:
    """What was measured here of some methods: a few columns of docs/choose.md."""
    runs, columns = reports(root), score_columns(root)
    rows = [
        [
            f"`{name}`",
            *(scores.get(name, "-") for _, scores in columns),
            seconds(latest(name, runs)),
        ]
        for name in SUMMARISED
    ]
    return table(["method", *(head for head, _ in columns), "time at 448"], rows)


def readme_table() -> str:
    """One row for each set of methods that share paper, weights and abilities."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name in list_upsamplers():
        info = get_class(name).info
        paper = info.paper or "-"
        if info.arxiv:
            paper = f"[{info.arxiv}](https://arxiv.org/abs/{info.arxiv}) {info.year}"
        head = "yes" if info.abilities.linear else "-"
        rows.setdefault((paper, weights_of(name), head), []).append(f"`{name}`")
    head = ["name", "paper", "weights", "linear head may go first (`values=`)"]
    return table(head, [[", ".join(names), *cells] for cells, names in rows.items()])


def weights_of(name: str) -> str:
    """Where a method's weights come from, in a few words."""
    records = [get_checkpoint(tag) for tag in list_upsamplers(f"{name}.*", pretrained=True)]
    inside = sum(record is not None and record.bundled for record in records)
    if not records:
        need = needs_of(name)[0].partition(";")[0].partition(":")[0]
        return "none needed" if need == "nothing" else need
    kind = "for all backbones" if get_class(name).info.abilities.universal else "per backbone"
    where = f"; {inside} in the package" if inside else ""
    return f"{len(records)}, {kind}{where}"


def index(names: list[str]) -> str:
    rows = []
    for name in names:
        info = get_class(name).info
        flags = [info.task_agnostic, *(getattr(info.abilities, key) for key in ABILITIES.values())]
        marks = ["yes" if flag else "-" for flag in flags]
        weights = str(len(list_upsamplers(f"{name}.*", pretrained=True)) or "-")
        rows.append([f"[{name}]({name}.md)", str(info.year or "-"), *marks, weights, info.summary])
    head = ["name", "year", "task-agnostic", *ABILITIES, "weights", "summary"]
    return f"{NOTE}# Methods\n\n{table(head, rows)}"


# -- docs/choose.md --------------------------------------------------------------------------------

FACTS = (
    *("method", "use it when", "weights", "licence of the code", "of the weights", "`values=`"),
    *("time", "memory"),
)
GROUPS = {
    "Ready for any backbone": "One set of weights, or none at all, serves every backbone.",
    "Weights for single backbones": "Load the file of your backbone, or train one: "
    "`upfeat train NAME_small --backbone B --data DIR`.",
    "An optimisation for each image": "No training set and no weights, but minutes per image.",
    "Methods to train yourself": "No weights are published; train them with `upfeat train`, for a "
    "backbone or together with a task.",
}
CHOOSE_HEAD = """# Which method should I use?

* **Start with `kin.upfeat`**: it works with any backbone, its weights are in the package, and it
  takes about a second per image on a CPU. It is the default of the commands.
* **If a linear head follows** (a probe, a 1x1 classifier, text queries), use a method with
  `values=` and apply the head first, so that only its few channels are upsampled.
* **If `upfeat list --pretrained` lists weights for your backbone** (`jafar`, `loftup`), compare
  them with `kin.upfeat` by `upfeat show compare photo.jpg --backbone B`, and by
  `upfeat eval seg-probe` on your own labelled images ([your_data.md](your_data.md)).
* **Always compare with `bilinear`.** A method that is not better on your data is not worth its
  time.

We measured the scores with linear and convolutional heads on frozen features of one small backbone,
{backbone}.
Settings and deviations are in [results.md](results.md). The ranking may differ for other backbones
and data sets. Time and memory: one image, 384 channels from 32 x 32 to 448 x 448,
float32, two cores of a server's CPU ([benchmarks](../benchmarks/README.md)); a GPU is much faster.
"-": not measured. Licences are those of the original code and of the weights; the terms of the
backbone and of the training images apply in addition (`upfeat info NAME`).
"""


def choose(root: Path, runs: list[tuple[str, BenchmarkRun]]) -> str:
    """One page that says which method to take, with what was measured here."""
    columns = score_columns(root)
    parts = []
    for title, need in GROUPS.items():
        names = [name for name in by_scores(columns) if group_of(name) == title]
        shown = [(head, scores) for head, scores in columns if not scores.keys().isdisjoint(names)]
        rows = [
            [*facts(name, runs), *(scores.get(name, "-") for _, scores in shown)] for name in names
        ]
        heading = [*FACTS, *(head for head, _ in shown)]
        parts.append(f"## {title}\n\n{need}\n\n{table(heading, rows)}")
    shown_tables = filter(None, (score_table(tables(root), wanted) for wanted in SCORES))
    used = {found.backbone for found in shown_tables}
    text = CHOOSE_HEAD.format(backbone=", ".join(sorted(used)) or "none yet")
    return NOTE + "\n".join([text, *parts])


@functools.cache
def tables(root: Path) -> list[Table]:
    """The results that are kept."""
    folder = root / "docs" / "results"
    return build_tables(gather_results([folder])) if any(folder.glob("*.json")) else []


def score_columns(root: Path) -> list[tuple[str, dict[str, str]]]:
    """Heading and, by method, the means of each of SCORES that there is.

    A method has one set of weights in all columns: those that most of them have.
    """
    found = (score_column(tables(root), wanted) for wanted in SCORES)
    columns = [column for column in found if column is not None]
    counts = collections.Counter(label for _, scores in columns for label in scores)
    shown = {method(label): label for label, _ in reversed(counts.most_common())}
    return [
        (head, {name: scores[label] for label in scores if shown[name := method(label)] == label})
        for head, scores in columns
    ]


def facts(name: str, runs: list[tuple[str, BenchmarkRun]]) -> list[str]:
    """Cells under FACTS."""
    info, record = get_class(name).info, latest(name, runs)
    records = map(get_checkpoint, list_upsamplers(f"{name}.*", pretrained=True))
    weights = list(dict.fromkeys(r.weights_license.partition(" (")[0] for r in records if r))
    steps = ", ".join(f"{key}={value}" for key, value in short_fit(get_class(name)).items())
    return [
        f"[`{name}`](methods/{name}.md)",
        info.when,
        weights_of(name),
        info.code_license or "textbook",
        ", ".join(weights) or "-",
        "yes" if info.abilities.linear else "-",
        seconds(record) + (f" ({steps})" if steps and record else ""),
        memory(record),
    ]


def method(label: str) -> str:
    """The method that a row's label, arch.tag, is of."""
    return label.partition(".")[0]


def score_table(kept: list[Table], wanted: tuple[str, str]) -> Table | None:
    """The table of a task and set with most rows; None if there is none."""
    found = [t for t in kept if (t.task, t.data) == wanted and t.headline and not t.quick_look]
    return max(found, key=lambda t: len(t.rows), default=None)


def score_column(kept: list[Table], wanted: tuple[str, str]) -> tuple[str, dict[str, str]] | None:
    """Heading and, by the rows' labels, their means; None without such a table."""
    best = score_table(kept, wanted)
    if best is None:
        return None
    score, values = str(best.headline), {}
    for row in best.rows:  # best first
        name = method(row.label)
        number = row.result.scores[score].mean if score in row.result.scores else None
        if name in list_upsamplers() and "(" not in row.label and number is not None:
            values[row.label] = f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
    return f"{best.data}, {best.heading(score)}", values


def by_scores(columns: list[tuple[str, dict[str, str]]]) -> list[str]:
    """Names of methods: first those with most scores here, then by name."""
    counts = {name: sum(name in scores for _, scores in columns) for name in list_upsamplers()}
    first = list(columns[0][1]) if columns else []
    order = {name: position for position, name in enumerate(first)}
    return sorted(counts, key=lambda name: (-counts[name], order.get(name, len(order)), name))


def latest(name: str, runs: list[tuple[str, BenchmarkRun]]) -> Measurement | None:
    """The newest time at 448 in float32."""
    found = [
        (run.environment.date, record)
        for _, run in runs
        if run.environment.dtype == "float32"
        and (record := run.find(name, "448", "upfeat")) is not None
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def group_of(name: str) -> str:
    info = get_class(name).info
    titles = list(GROUPS)
    if info.abilities.per_image:
        return titles[2]
    if info.abilities.universal and weights_of(name).partition(" ")[0] != "training":
        return titles[0]
    return titles[1] if list_upsamplers(f"{name}.*", pretrained=True) else titles[3]


# -- one page a method -----------------------------------------------------------------------------


def page(name: str, reports: list[tuple[str, BenchmarkRun]]) -> str:
    info = get_class(name).info
    width = "feature_dim=384" if needs_feature_dim(name) else ""
    call = f'"{name}", {width}' if width else f'"{name}"'
    arxiv = f"[arXiv {info.arxiv}](https://arxiv.org/abs/{info.arxiv})" if info.arxiv else "-"
    paper = [
        ["paper", info.paper or "none"],
        ["year", str(info.year or "-")],
        ["arXiv", arxiv],
        ["original code", info.code or "none"],
        ["claim", info.claim],
        ["measured here", "see `docs/results.md`"],
    ]
    fields = ABILITIES | {
        "mixes other values (`values=`)": "mixes_values",
        "bounded memory (`tiles`)": "tiles",
        "single positions (`query`)": "query",
        "carries gradients": "gradients",
        "`torch.compile`": "compile",
    }
    flags = [["task-agnostic", "yes" if info.task_agnostic else "no"]]
    for label, field in fields.items():
        flags.append([label, "yes" if getattr(info.abilities, field) else "no"])
    for format, sizes in vars(info.abilities.export).items():
        flags.append([f"`upfeat export --format {format}`: sizes", sizes])
    baseline = [[f"{paper} ({PAPERS[paper]})", how] for paper, how in baseline_notes(name).items()]
    needs = "".join(f"* {need}\n" for need in needs_of(name))
    return (
        f"{NOTE}# {name}\n\n{info.summary}\n\nUse it when: {info.when} "
        "[Comparison of all methods](../choose.md).\n\n"
        f"```python\nup = upfeat.create_upsampler({call})\n```\n\n"
        f"{table(['', ''], paper)}\n"
        f"## Abilities\n\n{table(['ability', ''], flags)}\n"
        f"## Needs\n\n{needs}\n"
        f"## Cost\n\n{cost(name, reports)}\n"
        f"## Licences\n\n{licences(name)}\n"
        f"## As a baseline\n\n{table(['paper', 'how it was run'], baseline)}"
    )


def cost(name: str, reports: list[tuple[str, BenchmarkRun]]) -> str:
    rows = []
    for file, report in reports:
        for record in report.records:
            if (record.method, record.implementation) != (name, "upfeat"):
                continue
            plain = report.find(name, record.case, "plain")
            rows.append(
                [
                    record.case,
                    report.environment.dtype,
                    f"failed: {record.error}" if record.error else seconds(record),
                    seconds(plain),
                    seconds_text(record.floor_seconds),
                    memory(record),
                    memory(plain),
                    f"{report.environment.threads}",
                    f"`{file}`",
                ]
            )
    if not rows:
        return f"Not measured; run `upfeat bench {name}`.\n"
    head = ["case", "dtype", "upfeat", "plain", "floor", "memory", "plain memory", "threads"]
    return (
        table([*head, "file"], rows)
        + "\nMedian times; processor, versions and settings are in the files, in "
        "`benchmarks/results/`.\n"
    )


def licences(name: str) -> str:
    info = get_class(name).info
    rows = []
    for tag in list_upsamplers(f"{name}.*", pretrained=True):
        record = get_checkpoint(tag)
        if record is not None:
            parts = (record.code_license, record.weights_license, record.backbone_license)
            rows.append([f"`{tag}`", record.backbone, *parts])
    if not rows:
        rows.append(["none", "-", info.code_license or "-", info.weights_license or "-", "-"])
    return table(["weights", "backbone", "original code", "of weights", "of backbone"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def seconds(record: Measurement | None) -> str:
    return seconds_text(None if record is None else record.median_seconds)


def seconds_text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def memory(record: Measurement | None) -> str:
    if record is None or record.peak_bytes <= 0:
        return "-"
    return f"{record.peak_bytes / 1e9:.2f} GB"


def differences(root: Path = ROOT) -> list[str]:
    """Names of files that are missing, out of date or left over."""
    folder, wanted = root / "docs" / "methods", pages(root)
    present = {path.name for path in folder.glob("*.md")}
    stale = [
        name
        for name, text in wanted.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
    kept = root / LISTING
    if not kept.is_file() or kept.read_text(encoding="utf-8") != listing():
        stale.append(LISTING.name)
    if (folder / README).is_file():
        text = (folder / README).read_text(encoding="utf-8")
        stale += [README] * (text != readme(text, root))
    return sorted(stale + list(present - set(wanted)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/methods.")
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    stale = differences()
    if parser.parse_args().check:
        sys.stdout.write("".join(f"out of date: {name}\n" for name in stale))
        return 1 if stale else 0
    folder, wanted = ROOT / "docs" / "methods", pages()
    folder.mkdir(parents=True, exist_ok=True)
    kept = [name for name in stale if name != README and not is_ours(folder / name)]
    for name in (name for name in stale if name not in kept):
        if name == LISTING.name:
            write_bytes(ROOT / LISTING, listing().encode())
        elif name == README:
            text = (folder / README).read_text(encoding="utf-8")
            write_bytes((folder / README).resolve(), readme(text).encode())
        elif name in wanted:
            write_bytes(folder / name, wanted[name].encode())
        else:
            (folder / name).unlink()
    sys.stdout.write("".join(f"kept, for it was written by hand: {name}\n" for name in kept))
    written = len(stale) - len(kept)
    sys.stdout.write(f"{written} of {len(wanted) + 2} files written\n")
    return 1 if kept else 0


def is_ours(page: Path) -> bool:
    """Whether nothing is there, or what this file wrote."""
    return not page.exists() or page.read_text(encoding="utf-8").startswith(NOTE)


if __name__ == "__main__":
    sys.exit(main())
