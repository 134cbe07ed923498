"""Tables, ranks, published numbers and the Markdown page."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from upfeat.evaluation.papers import differences, published_for, published_tables
from upfeat.evaluation.registry import column_groups, get_protocol, list_protocols, score_digits
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.tables import Table, build_tables, gather_results, rank_methods
from upfeat.evaluation.tables.markdown import results_page, table_command


def result(
    label: str,
    scores: dict[str, float | list[float]],
    task: str = "seg-probe",
    date: str = "2026-01-01",
    unit: str = "percent",
    seconds: float | None = None,
    **settings: Any,
) -> Result:
    base = {"data": "msrc", "preset": "pixel-sample", "backbone": {"name": "timm/vit_tiny"}}
    return Result(
        task=task,
        label=label,
        settings=base | {"upsampler": {"name": label, "weights": f"w-{date}"}} | settings,
        scores={n: Score.of(v if isinstance(v, list) else [v]) for n, v in scores.items()},
        unit=unit,
        seconds={} if seconds is None else {"training": seconds, "validation": 1.0},
        environment={"date": date},
    )


def places(table: Table, score: str) -> dict[str, int]:
    return {row.label: row.places[score] for row in table.rows if score in row.places}


# -- gathering -----------------------------------------------------------------------------------


def test_gathering_keeps_the_newer_of_equal_settings(tmp_path: Path) -> None:
    method = {"name": "jafar"}
    result("jafar", {"miou": 1.0}, date="2026-01-02", upsampler=method).save(tmp_path / "a.json")
    result("jafar", {"miou": 2.0}, date="2026-01-03", upsampler=method).save(tmp_path / "b.json")
    result("jafar", {"miou": 3.0}, date="2026-01-01", upsampler=method).save(tmp_path / "c.json")
    (found,) = gather_results([tmp_path, tmp_path / "a.json"])
    assert found.scores["miou"].mean == 2.0


def test_gathering_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        gather_results([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no results \(\*\.json\)"):
        gather_results([tmp_path])
    result("jafar", {"miou": 1.0}).save(tmp_path / "good.json")
    (tmp_path / "half.json").write_text('{"task": "seg-')
    with pytest.raises(ValueError, match=r"half\.json"):
        gather_results([tmp_path])


# -- what stands together ------------------------------------------------------------------------


def test_only_equal_settings_share_a_table() -> None:
    tables = build_tables(
        [
            result("a", {"miou": 70.0}, steps=100),
            result("b", {"miou": 71.0}, steps=100),
            result("a", {"miou": 72.0}, steps=200),
            result("a", {"miou": 60.0}, steps=100, data="camvid"),
        ]
    )
    assert [(t.data, [row.label for row in t.rows], t.variant) for t in tables] == [
        ("camvid", ["a"], ""),
        ("msrc", ["b", "a"], "steps 100"),
        ("msrc", ["a"], "steps 200"),
    ]
    assert "steps 200" in tables[2].title


def test_quick_looks_stand_apart_and_are_not_ranked() -> None:
    quick = [result(label, {"miou": 1.0}, limit=2) for label in "ab"]
    (table,) = build_tables(quick)
    assert table.quick_look
    assert rank_methods([table]).tables == ()
    assert "no number here is to be quoted" in results_page([table])


def test_rows_of_one_label_and_of_other_seeds_are_told_apart() -> None:
    (table,) = build_tables(
        [
            result("a", {"miou": 70.0}, seeds=[0], date="1"),
            result("a", {"miou": 71.0}, seeds=[0], date="2"),
            result("b", {"miou": 60.0}, seeds=[0, 1]),
        ]
    )
    names = [row.name for row in table.rows]
    assert names == ["a (weights w-2)", "a (weights w-1)", "b (seeds 0, 1)"]


def test_a_row_on_the_coarse_grid_stays_in_the_table_and_in_the_ranks() -> None:
    rows = [
        result("low-res", {"jf": 1.0}, task="vos", output_size=[14, 14]),
        result("a", {"jf": 2.0}, task="vos", output_size=[112, 112]),
        result("b", {"jf": 3.0}, task="vos", output_size=[112, 112]),
        result("low-res", {"adcc": 3.0}, task="cam"),
        result("a", {"adcc": 4.0}, task="cam"),
    ]
    tables = build_tables(rows)
    assert [len(table.rows) for table in tables] == [2, 3]
    assert tables[1].rows[2].name == "low-res (output size 14×14)"
    assert [row.name for row in rank_methods(tables).rows] == ["a", "low-res", "b"]


def test_only_tables_of_the_usual_backbone_are_ranked() -> None:
    rows = [
        result(name, {score: float(value)}, task=task, backbone={"name": backbone})
        for task, score, backbone in (
            ("vos", "jf", "timm/a"),
            ("cam", "adcc", "timm/a"),
            ("interactive", "iou_1", "timm/b"),
        )
        for value, name in enumerate("xyz")
        if backbone == "timm/a" or name != "x"
    ]
    ranking = rank_methods(build_tables(rows))
    assert ranking.headings == ("cam · msrc", "vos · msrc")
    assert [row.mean for row in ranking.rows] == [1, 2, 3]
    assert "Tables of timm/a only." in ranking.remark


def test_the_command_names_training_sets() -> None:
    rows = [result("a", {"iou_1": 1.0}, task="interactive", trained_on=["sbd/train", "coco"])]
    assert "--train sbd=data/sbd,coco=data/coco" in table_command(build_tables(rows)[0])


def test_results_in_several_units() -> None:
    unit = "percent; mean squared error in the features' unit; deviation over the images"
    scores: dict[str, float | list[float]] = {
        "pooled_cosine": 99.0,
        "pooled_mse": 0.1,
        "own_miou": 70.0,
    }
    (table,) = build_tables([result(m, scores, task="faithfulness", unit=unit) for m in "ab"])
    assert [table.unit(name) for name in table.scores] == ["%", "", "%"]
    assert table.units == f"Numbers: {unit}."
    assert table.units in results_page([table])


def test_labelled_scores_that_repeat_the_others_are_left_out() -> None:
    same = [result(label, {"miou": 1.0, "miou_labelled": 1.0}) for label in "ab"]
    assert build_tables(same)[0].scores == ("miou",)
    other = result("c", {"miou": 1.0, "miou_labelled": 2.0})
    assert build_tables([*same, other])[0].scores == ("miou", "miou_labelled")


# -- best and second best ------------------------------------------------------------------------


def test_marks_follow_the_direction_of_each_score() -> None:
    (table,) = build_tables(
        [
            result("a", {"rmse": 0.5, "d1": 80.0}, task="depth-probe"),
            result("b", {"rmse": 0.7, "d1": 90.0}, task="depth-probe"),
            result("c", {"rmse": 0.6, "d1": 70.0}, task="depth-probe"),
        ]
    )
    assert places(table, "rmse") == {"a": 1, "c": 2}
    assert places(table, "d1") == {"b": 1, "a": 2}
    assert [row.label for row in table.rows] == ["a", "c", "b"]  # by RMSE


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([1.0, 1.0, 0.0], {"a": 1, "b": 1}),  # two best, no second
        ([2.0, 1.0, 1.0], {"a": 1, "b": 2, "c": 2}),
        ([2.0, 1.0], {"a": 1}),  # of two, the other is not "second best"
        ([2.0], {}),
        ([2.0, float("nan"), 1.0], {"a": 1}),
    ],
)
def test_ties_and_missing_numbers(means: list[float], expected: dict[str, int]) -> None:
    rows = [result(label, {"miou": mean}) for label, mean in zip("abc", means, strict=False)]
    assert places(build_tables(rows)[0], "miou") == expected


def test_a_score_without_direction_is_shown_and_not_marked() -> None:
    (table,) = build_tables([result(label, {"colour": 1.0}) for label in "abc"])
    assert table.headline is None
    assert places(table, "colour") == {}
    assert all(row.rank is None for row in table.rows)


def test_known_scores() -> None:
    seg, depth, efficiency = map(get_protocol, ("seg-probe", "depth-probe", "efficiency"))
    assert seg.kind("band_miou_labelled").heading == "boundary mIoU labelled"
    assert get_protocol("cam").kind("complexity_l1").higher_is_better is False
    assert depth.kind("si_d1").higher_is_better is True
    assert depth.kind("si_d1").unit == "percent"
    assert efficiency.kind("ms_forward_448").unit == "ms"
    assert efficiency.kind("ms_forward_448").heading == "forward time at 448"
    assert get_protocol("faithfulness").kind("own_miou").heading == "own probe mIoU"
    assert seg.kind("colour").higher_is_better is None
    assert seg.ranked_by(["miou", "miou_labelled"]) == "miou_labelled"
    assert seg.ranked_by(["colour"]) is None
    assert [score_digits([v]) for v in (50.0, 0.5, 0.05, 0.005, 0.0)] == [2, 3, 4, 5, 2]


def test_many_columns_become_tables_by_stem() -> None:
    names = ["parameters", *(f"{k}_{n}" for k in ("ms_forward", "gflop") for n in range(5))]
    kinds = {name: get_protocol("efficiency").kind(name) for name in names}
    assert [(heading, len(group)) for heading, group in column_groups(kinds)] == [
        ("", 1),
        ("forward time, ms", 5),
        ("operations, GFLOP", 5),
    ]
    few = {name: kinds[name] for name in names[:3]}
    assert column_groups(few) == [("", tuple(few))]


# -- ranks ---------------------------------------------------------------------------------------


def test_mean_rank_is_for_methods_of_every_table() -> None:
    tables = build_tables(
        [
            result("a", {"miou": 3.0}),
            result("b", {"miou": 2.0}),
            result("c", {"miou": 2.0}),
            result("a", {"rmse": 9.0}, task="depth-probe", data="nyuv2"),
            result("b", {"rmse": 1.0}, task="depth-probe", data="nyuv2"),
            result("d", {"rmse": 2.0}, task="depth-probe", data="nyuv2"),
            result("a", {"ms_forward_56": 2.0}, task="efficiency"),
            result("b", {"ms_forward_56": 1.0}, task="efficiency"),
        ]
    )
    ranking = rank_methods(tables)
    assert ranking.headings == ("depth-probe · nyuv2", "seg-probe · msrc")  # cost has no rank
    rows = {row.name: (row.ranks, row.mean, row.place) for row in ranking.rows}
    assert rows == {
        "b": ((1.0, 2.5), 1.75, 1),
        "a": ((3.0, 1.0), 2.0, None),
        "c": ((None, 2.5), None, None),
        "d": ((2.0, None), None, None),
    }
    assert "no mean rank" in ranking.remark


def test_headings_of_ranks_are_as_long_as_needed() -> None:
    rows = [
        result(label, {"miou": 1.0}, backbone={"name": name}) for label in "ab" for name in "xy"
    ]
    headings = rank_methods(build_tables(rows)).headings
    assert len(set(headings)) == 2
    assert headings[0].endswith("x")


# -- published numbers ---------------------------------------------------------------------------


def test_published_numbers_are_kept_as_printed() -> None:
    tables = {table.id: table for table in published_tables()}
    assert len(tables) == len(published_tables())

    def value(table: str, method: str, score: str, data: str) -> float | None:
        (column,) = {
            i
            for i, c in enumerate(tables[table].columns)
            if c.score == score and data in c.data and not c.setting.get("proxy")
        }
        return next(row.values[column] for row in tables[table].rows if row.method == method)

    assert value("jafar:table-1", "JAFAR", "miou", "voc") == 84.44
    assert value("jafar:table-1", "Large image (x8)", "d1", "coco") is None
    assert value("jafar:table-2", "LiFT", "average_drop", "imagenet") == 66.9
    assert value("loftup:table-4", "LoftUp", "jf", "davis2017") == 60.25
    assert value("loftup:table-7", "FeatUp-implicit", "ms_forward_224", "loftup") == 54302.0
    for table in tables.values():
        for row in table.rows:
            assert len(row.values) == len(table.columns), (table.id, row.method)
        for column in table.columns:
            if column.task in list_protocols():
                kind = get_protocol(column.task).kind(column.score)
                assert kind.higher_is_better is not None, column


def test_published_blocks_say_what_differs() -> None:
    (table,) = build_tables(
        [
            result(
                "jafar",
                {"adcc": 0.7},
                task="cam",
                data="imagenet_sample",
                unit="fraction",
                images=40,
                classifier="ViT-B/16",
                backbone=None,
                map_size=[224, 224],
            )
        ]
    )
    (block,) = table.published
    assert dict(block.rows)["JAFAR"] == {"adcc": 73.3}
    remark = table.remark(block)
    assert "images 2000 (here: 40)" in remark
    assert "ADCC in units of % (here: fraction)" in remark
    assert "ViT-B/16" not in remark  # it is the same here
    assert "map size" not in remark
    page = results_page([table])
    assert "| JAFAR | 73.3 |" in page
    assert "arxiv.org/abs/2506.11136" in page


def test_nothing_published_fits_other_sets() -> None:
    assert published_for("seg-probe", "msrc", ["miou"]) == []
    assert published_for("cam", "imagenet", ["colour"]) == []


def test_crops_count_as_input_size() -> None:
    assert differences({"input_size": [448, 448]}, {"crop_size": 448}) == []
    ours = {"crop_size": 448, "target_size": 56}
    assert differences({"input_size": [448, 448], "output_size": [56, 56]}, ours) == []
    assert differences({"output_size": [224, 224]}, ours) == ["output size 224×224 (here: 56×56)"]
    assert differences({"output_size": [448, 448]}, {"crop_size": 448, "target_size": None}) == []
    assert differences({"backbone": "a"}, {"backbone": {"name": "a", "layer": 3}}) == []


# -- Markdown and commands -----------------------------------------------------------------------


def test_the_markdown_page() -> None:
    tables = build_tables(
        [
            result("a|b", {"miou": [70.0, 72.0]}, seconds=10.0),
            result("b", {"miou": [60.0, 60.0]}, seconds=20.0),
            result("c", {"miou": [61.0, 61.0]}),
        ]
    )
    remarks = "Before.\n\n## Segmentation, linear probe\n\nAs expected.\n\n## Other\n\nMore.\n"
    page = results_page(tables, note="<!-- x -->\n\n", link="results/", remarks=remarks)
    assert page.startswith("<!-- x -->\n\n# Results\n")
    assert "| upsampler | mIoU, % ↑ | time, s |\n| --- | --- | --- |\n" in page
    assert "| `a\\|b` | **71.00 ± 1.41** | 11 |\n" in page
    assert "| `c` | *61.00 ± 0.00* | - |\n" in page
    assert "| `b` | 60.00 ± 0.00 | 21 |\n" in page
    assert "[`results/`](results/)" in page
    order = ["Before.", "## Segmentation", "`b` | 60", "As expected.", "## Other", "More."]
    assert sorted(order, key=page.index) == order
    assert "Mean rank" not in page  # one table ranks nothing


def test_the_command_makes_the_table_again() -> None:
    seeds = [0, 1]
    kept = {"seeds": seeds, "input_size": [208, 320], "steps": 50, "data": "msrc"}
    (table,) = build_tables(
        [
            result("kin.upfeat", {"miou": 2.0}, upsampler={"name": "kin"}, **kept),
            result("mine", {"miou": 1.0}, upsampler={"name": "kin"}, **kept),
        ]
    )
    command = table_command(table)
    assert "upfeat eval seg-probe --backbone timm/vit_tiny --data msrc --root data/msrc" in command
    assert "--upsampler mine=FOLDER,kin.upfeat --seeds 0,1 --set steps=50 --out results" in command
    assert "input_size" not in command  # the preset's own


def test_results_survive_json(tmp_path: Path) -> None:
    """Settings read from a file compare equal to those in memory: tuples became lists."""
    first = result("a", {"miou": 1.0}, size=[1, 2])
    first.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["label"] == "a"
    tables = build_tables([*gather_results([tmp_path]), result("b", {"miou": 2.0}, size=[1, 2])])
    assert len(tables) == 1


def test_a_score_of_nothing_is_read_back(tmp_path: Path) -> None:
    """No boundary, no valid pixel: NaN, null in JSON; it has no rank and breaks no folder."""
    nothing = Score.of([math.nan, math.nan])
    settings = {"data": "msrc", "preset": "jafar"}
    scores = {"miou": nothing, "accuracy": Score.of([1.0, 2.0])}
    result = Result(task="seg-probe", label="none", settings=settings, scores=scores)
    result.save(tmp_path / "result.json")
    loaded = Result.load(tmp_path / "result.json")
    assert math.isnan(loaded.scores["miou"].mean)
    assert all(map(math.isnan, loaded.scores["miou"].per_seed))
    assert loaded.scores["accuracy"] == scores["accuracy"]
    (table,) = build_tables(gather_results([tmp_path]))
    assert [row.rank for row in table.rows] == [None]
    assert "none" in results_page([table])
