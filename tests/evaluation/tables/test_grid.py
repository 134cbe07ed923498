"""Tables as Markdown, CSV and LaTeX, with the IoU of each class."""

from __future__ import annotations

import csv
import io

import pytest

from upfeat.evaluation.report.content import report_content
from upfeat.evaluation.report.page import report_page
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.tables import build_tables
from upfeat.evaluation.tables.grid import class_grid, latex_text, score_grids, table_files
from upfeat.evaluation.tables.markdown import results_page, table_command

STEM = "seg-probe--street--pixel-sample--vit_tiny"


def result(label: str, miou: list[float], classes: dict[str, float | None], **more: str) -> Result:
    settings = {
        "data": "street",
        "preset": "pixel-sample",
        "backbone": {"name": "timm/vit_tiny"},
        "upsampler": {"name": label},
    }
    return Result(
        task="seg-probe",
        label=label,
        settings=settings | more,
        scores={"miou": Score.of(miou)},
        details={"iou_per_class": classes},
    )


RESULTS = (
    result("low_res", [60.0, 62.0], {"road": 70.0, "A & B": 10.0, "sky": None}),
    result("bilinear", [70.0, 72.0], {"road": 80.0, "A & B": 12.0, "sky": None}),
    result("jafar", [80.0, 82.0], {"road": 90.0, "A & B": 12.0, "sky": None}),
)


def files() -> dict[str, str]:
    return table_files(build_tables(RESULTS))


def test_three_formats_of_scores_and_of_classes() -> None:
    kinds = ("md", "csv", "tex")
    assert list(files()) == [f"{STEM}{tail}.{kind}" for tail in ("", "--classes") for kind in kinds]


def test_markdown_marks_best_and_second() -> None:
    text = files()[f"{STEM}.md"]
    assert "| `jafar` | **81.00 ± 1.41** |" in text
    assert "| `bilinear` | *71.00 ± 1.41* |" in text
    assert "| `low_res` | 61.00 ± 1.41 |" in text


def test_latex_is_booktabs_with_bold_and_underline() -> None:
    text = files()[f"{STEM}.tex"]
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lr}"):
        assert part in text
    assert r"jafar & \textbf{81.00 $\pm$ 1.41} \\" in text
    assert r"bilinear & \underline{71.00 $\pm$ 1.41} \\" in text
    assert r"low\_res & 61.00 $\pm$ 1.41 \\" in text
    assert r"mIoU, \% $\uparrow$" in text
    assert text.count("{") == text.count("}")
    assert text.isascii()


@pytest.mark.parametrize("text", ["a_b", "50 %", r"x\y", "~^", "#1 {}", "↑ ↓ ± × · δ1"])
def test_nothing_is_left_that_latex_would_take_for_a_command(text: str) -> None:
    escaped = latex_text(text)
    assert escaped.isascii()
    rest = escaped.replace(r"\textbackslash{}", "").replace(r"\textasciitilde{}", "")
    for letter in "_%#":
        assert rest.count(letter) == rest.count(f"\\{letter}")


def test_csv_holds_whole_numbers_and_deviations() -> None:
    rows = list(csv.DictReader(io.StringIO(files()[f"{STEM}.csv"])))
    assert [row["upsampler"] for row in rows] == ["jafar", "bilinear", "low_res"]
    assert float(rows[0]["mIoU, %"]) == 81.0
    assert float(rows[0]["mIoU, % deviation"]) == pytest.approx(2**0.5)
    classes = list(csv.DictReader(io.StringIO(files()[f"{STEM}--classes.csv"])))
    assert classes[1] == {"class": "A & B", "jafar": "12", "bilinear": "12", "low_res": "10"}
    assert classes[2] == {"class": "sky", "jafar": "", "bilinear": "", "low_res": ""}


def test_places_of_classes() -> None:
    (table,) = build_tables(RESULTS)
    grid = class_grid(table)
    assert grid is not None
    assert [[cell.place for cell in row.cells] for row in grid.rows] == [
        [1, 2, 0],  # road
        [1, 1, 0],  # two best leave no second
        [0, 0, 0],  # occurs nowhere
    ]
    assert (
        class_grid(build_tables([r.model_copy(update={"details": {}}) for r in RESULTS])[0]) is None
    )


def test_tables_of_one_heading_have_files_of_their_own() -> None:
    other = result("jafar", [50.0], {}, steps="100")
    names = [name for name in table_files(build_tables([*RESULTS, other])) if name.endswith(".tex")]
    assert len(set(names)) == 3  # scores of both, classes of one
    assert f"{STEM}--2.tex" in names


def test_pages_show_each_class_where_asked() -> None:
    tables = build_tables(RESULTS)
    assert "| road | **90.00** | *80.00* | 70.00 |" in results_page(tables, classes=True)
    assert "| road |" not in results_page(tables)
    page = report_page(report_content("t", tables, []))
    assert "IoU of each class, %" in page
    assert '<button type="button">class</button>' in page
    assert len(score_grids(tables[0])) == 1


def test_a_set_of_the_users_own_has_no_published_numbers_and_its_own_command() -> None:
    """Even one that is called like a paper's."""
    own = result("jafar", [50.0], {}, data="voc", reader="folder", input_size=[336, 448])
    (table,) = build_tables([own])
    assert table.published == ()
    assert table.title.startswith("voc")
    command = table_command(table)
    assert "--data folder --root data/voc" in command
    assert "--set 'input_size=[336, 448]'" in command
    (known,) = build_tables([result("jafar", [50.0], {}, data="voc")])
    assert known.published
