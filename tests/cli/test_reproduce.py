"""``upfeat reproduce``: the list, and small runs of tables and figures on a tiny set."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from upfeat.cli.app import app
from upfeat.cli.reproduce.methods import RowMethods, at_hand, published_name
from upfeat.cli.reproduce.running import Runner
from upfeat.evaluation.papers import find_published, published_tables
from upfeat.evaluation.papers.plan import not_ready, plan_jobs
from upfeat.evaluation.papers.records import DINOV2
from upfeat.evaluation.papers.reproductions import (
    Ran,
    Reproduction,
    changed_method,
    comparison_rows,
    reproduce_page,
)
from upfeat.evaluation.papers.sources import Roots, paper_method
from upfeat.evaluation.registry import get_protocol
from upfeat.training import Trainer, create_recipe, list_recipes
from upfeat.upsamplers import create_upsampler


def call(*arguments: object) -> Result:
    runner = CliRunner(env={"COLUMNS": "400", "UPFEAT_OFFLINE": "1"})
    return runner.invoke(app, ["reproduce", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that holds MSRC's layout, training images and photos."""
    root = tmp_path / "data"
    draws = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            pixels = draws.integers(0, 256, (64, 96, 3), np.uint8)
            labels = np.repeat(draws.integers(0, 23, (1, 96)), 64, 0).astype(np.uint8)
            for kind, array, suffix in (("images", pixels, "jpg"), ("labels", labels, "png")):
                path = root / "msrc" / split / kind / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    for name in ("imagenet_sample/images", "photos"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            pixels = draws.integers(0, 256, (100, 120, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_the_list_names_every_table_and_what_is_missing(data: Path) -> None:
    shown = call("--list")
    assert shown.exit_code == 0, shown.output
    for table in published_tables():
        assert table.id in shown.stdout
    assert "not supported" not in shown.stdout
    assert "give it with --root voc=DIR" in " ".join(shown.stdout.split())
    assert max(map(len, shown.stdout.splitlines())) <= 100
    small = call("jafar:table-1", "--needs", "--small", "--root", f"data={data}")
    assert "set msrc (there): seg-probe" in small.stdout
    assert "set camvid (missing): seg-probe" in small.stdout
    assert "set imagenet (there): training of" in small.stdout


def test_all_that_a_table_needs_has_addresses_and_remarks() -> None:
    text = " ".join(call("loftup:table-4", "jafar:table-6", "--needs").stdout.split())
    assert "set sbd (missing): training of interactive" in text
    assert "--train sbd=DIR" in text
    assert "weights loftup.dinov2_vits14: haiwen/loftup-dinov2s/pytorch_model.bin" in text
    assert "These rows are our reading" in text


def test_a_small_run_of_a_table_resumes_and_says_what_differs(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--small", "--root", f"data={data}", "--out", out, "--rows", "heads-8")
    first = call("jafar:table-5", *options)
    assert first.exit_code == 0, first.output
    record = Reproduction.load(out / "jafar-table-5.json")
    (table,) = find_published(["jafar:table-5"])
    voc = [each for each in record.ran if each.published == "voc"]
    assert {each.row for each in voc if each.values} == {"heads-8"}
    (trained,) = voc
    assert trained.trained == ("jafar_small",)
    assert trained.differs[0] == "data voc (here: msrc)"
    assert any("input size 448×448 (here: 96×96)" in text for text in trained.differs)
    missing = [each.problem for each in record.ran if each.published == "ade20k"]
    assert all("give it with --root nyuv2=DIR" in problem for problem in missing)
    heads, rows = comparison_rows(table, record)
    (row,) = (cells for cells in rows if cells[0] == "JAFAR, heads 8")
    assert row[1].startswith("83.82 / ")
    assert not row[1].endswith("-")
    results = {path: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}
    assert len(results) == 1
    record.model_copy(update={"seconds": 1000.0}).save(out)
    again = call("jafar:table-5", *options)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in results} == results
    resumed = Reproduction.load(out / "jafar-table-5.json")
    assert resumed.ran == record.ran
    assert 1000 < resumed.seconds < 2000  # both runs together
    assert "heads-8" in reproduce_page([record])
    assert len(heads) == len(row)


def test_another_backbone_is_a_difference(data: Path, tmp_path: Path) -> None:
    """Also where the paper's setting is not printed."""
    options = ("--small", "--root", f"data={data}", "--out", tmp_path, "--rows", "bilinear")
    outcome = call("anyup:table-faithfulness", *options)
    assert outcome.exit_code == 0, outcome.output
    (found,) = Reproduction.load(tmp_path / "anyup-table-faithfulness.json").ran
    backbones = f"{DINOV2} (here: upfeat/vit_compact_patch16)"
    assert found.differs == (f"backbone {backbones}",)


def test_another_form_of_a_method_is_a_difference(data: Path, tmp_path: Path) -> None:
    """Whatever a small run changes of a method, not of its training, in tables and figures."""
    options = ("--small", "--root", f"data={data}", "--out", tmp_path)
    assert call("jafar:table-1", *options, "--rows", "strided,bilinear").exit_code == 0
    record = Reproduction.load(tmp_path / "jafar-table-1.json")
    methods = {
        each.row: [text for text in each.differs if text.startswith("method ")]
        for each in record.ran
        if each.values
    }
    assert methods == {"strided": ["method strided:6 (here: strided:8)"], "bilinear": []}
    (figure,) = find_published(["naf:figure-features"])
    text = "method naf (here: naf(kernel_size=5))"
    drawn = Ran(row="naf", columns=(), task="features", differs=changed_method("naf", small=True))
    record = Reproduction(id=figure.id, small=True, ran=(drawn,), pictures=("a.png",))
    assert f"- naf: {text}" in reproduce_page([record])


def test_random_weights_of_a_second_network_repeat(data: Path, tmp_path: Path) -> None:
    """Whatever was drawn before, as in a run that goes on after it was killed."""
    pytest.importorskip("open_clip")
    runner = Runner(Roots({"data": data}), tmp_path / "out", tmp_path / "cache", small=True)
    (table,) = find_published(["naf:table-open-vocabulary"])
    (job,) = plan_jobs(table, small=True)
    states = []
    for _ in range(2):
        states.append(runner.inputs(get_protocol(job.task), job)["clip"].state_dict())
        torch.rand(3)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_small_crops_suit_nafs_windows(data: Path, tmp_path: Path) -> None:
    methods = RowMethods(192, "", Roots({"data": data}), tmp_path, small=True, device="cpu")
    changes = [*methods._changes("naf_small", ()), "steps=1", "checkpoint.every=1"]
    config = methods._with_data(create_recipe("naf_small", changes), paper_method("naf"))
    Trainer(config, tmp_path / "run").fit()
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_numbers(data: Path, tmp_path: Path) -> None:
    """Killed between two methods of one call; the first one's result is not computed again."""
    options = ["--small", "--root", f"data={data}", "--rows", "bilinear,jafar"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert call("jafar:table-6", *options, "--out", whole).exit_code == 0
    command = [sys.executable, "-m", "upfeat", "reproduce", "jafar:table-6", *options]
    process = subprocess.Popen([*command, "--out", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (first := list((killed / "results").glob("*--bilinear--*.json"))):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (kept,) = first
    written = kept.stat().st_mtime_ns
    assert len(list((killed / "results").glob("*.json"))) == 1
    assert call("jafar:table-6", *options, "--out", killed).exit_code == 0
    assert kept.stat().st_mtime_ns == written
    records = [Reproduction.load(folder / "jafar-table-6.json") for folder in (whole, killed)]
    assert records[0].ran == records[1].ran
    assert [each.row for each in records[1].ran if each.values] == ["bilinear", "jafar"]


def test_our_megabytes_stand_beside_the_papers_gigabytes() -> None:
    (table,) = find_published(["jafar:table-11"])
    number = [column.score for column in table.columns].index("mb_forward_224")
    one = Ran(
        row="jafar", columns=(number,), values=(512.0,), units=("MB",), task="efficiency", data=""
    )
    _, rows = comparison_rows(table, Reproduction(id=table.id, ran=(one,)))
    assert rows[2][0] == "JAFAR"
    assert rows[2][1 + number] == "1.10 / 0.500"


def test_a_figure_is_drawn(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("jafar:figure-8", "--small", "--root", f"data={data}", "--out", out)
    assert done.exit_code == 0, done.output
    record = Reproduction.load(out / "jafar-figure-8.json")
    assert len(record.pictures) == 2
    for name in record.pictures:
        assert Image.open(out / name).size[0] > 100
    picture = json.loads((out / record.pictures[0]).with_suffix(".picture.json").read_text())
    assert [method["label"] for method in picture["methods"]] == ["bilinear", "jafar"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name tables or figures"),
        (("jafar:table-99",), "unknown table or figure"),
        (("jafar:table-1", "--root", "voc"), "--root must be SET=DIR"),
        (("jafar:table-1", "--root", "vok=x"), "unknown data set 'vok'"),
        (("jafar:table-1", "--rows", "jaffar"), "unknown row of jafar:table-1"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = call(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_weights_belong_to_the_backbone() -> None:
    assert published_name("loftup", "upfeat/vit_compact_patch16") == "loftup.vit_compact_patch16"
    assert published_name("anyup", "anything") is not None
    assert published_name("naf", "anything") == "naf.release"  # not DiveUp's, which it also takes
    assert published_name("jafar", "anything") is None


def test_a_small_run_trains_what_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path))
    assert at_hand("kin.upfeat")
    assert not at_hand("naf.release")
    trained = []
    methods = RowMethods(192, "", Roots({}), tmp_path, small=True, device="cpu")
    monkeypatch.setattr(methods, "_train", lambda row, method: trained.append(method.arch))
    monkeypatch.setattr(methods, "_load_model", lambda folder, spec: create_upsampler("bilinear"))
    (table,) = find_published(["naf:table-depth"])
    row = next(row for row in table.rows if row.uses == "naf")
    methods.load(row, get_protocol("depth-probe"))
    assert trained == ["naf"]


def test_a_folder_of_several_sets_is_searched(data: Path) -> None:
    roots = Roots({"data": data, "voc": data / "nowhere"})
    assert roots.find("imagenet") == data / "imagenet_sample"
    assert "no folder at" in (roots.missing("voc") or "")
    assert roots.missing("msrc") is None


@pytest.mark.parametrize("table", published_tables(), ids=lambda table: table.id)
def test_every_table_has_jobs_and_known_recipes(table: object) -> None:
    """Every column has a protocol with its preset, every row recipes that exist."""
    (found,) = find_published([table.id])  # type: ignore[attr-defined]
    for small in (False, True):
        jobs = plan_jobs(found, small=small)
        assert sum(len(job.rows) * len(job.columns) for job in jobs) == len(found.rows) * len(
            found.columns
        )
    assert not any(not_ready(column.task, column.preset) for column in found.columns)
    heads, shown = comparison_rows(found, None)
    assert len(set(heads)) == len(heads)
    assert len({cells[0] for cells in shown}) == len(found.rows)
    for row in found.rows:
        assert set(row.recipes) | set(row.small_recipes) <= set(list_recipes())
