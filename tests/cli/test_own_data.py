"""One command on a folder of the user's own: results, tables, figures; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.data.trees import write
from upfeat.cli.app import app
from upfeat.cli.eval import OWN, kept_protocols
from upfeat.data.own import FOLDER_SET
from upfeat.evaluation.registry import ProtocolConfig
from upfeat.evaluation.results import Result

SIZE = (32, 48)
QUICK = ("steps=3", "pixels_per_image=16", "batch_pixels=16", "input_size=[32, 48]")


def labelled(root: Path, count: int = 40) -> Path:
    """Photographs of two halves, with three classes and an ignored corner."""
    draw = np.random.default_rng(0)
    for number in range(count):
        label = np.zeros(SIZE, np.uint8)
        label[:, 24:] = 1 + number % 2
        label[:4, :4] = 255
        image = draw.integers(0, 60, (*SIZE, 3)) + 60 * label.clip(0, 2)[..., None]
        write(root / "images" / f"{number:02d}.png", image.astype(np.uint8))
        write(root / "labels" / f"{number:02d}.png", label)
    (root / "classes.txt").write_text("left\nodd_one\neven\n")
    return root


def call(tmp_path: Path, task: str, *arguments: str, quick: tuple[str, ...] = QUICK) -> object:
    line = ["eval", task, "--backbone", "upfeat/vit_compact_patch16", "--upsampler", "nearest"]
    line += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *arguments]
    line += [part for setting in quick for part in ("--set", setting)]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, line)


def test_one_command_gives_tables_classes_and_figures(tmp_path: Path) -> None:
    root = labelled(tmp_path / "my_photos")
    wanted = ("--tables", str(tmp_path / "tables"), "--figures", str(tmp_path / "figures"))
    outcome = call(
        tmp_path, "seg-probe", "--data", "folder", "--root", str(root), "--seeds", "0", *wanted
    )
    assert outcome.exit_code == 0, outcome.output
    assert "pixel-sample, my_photos, upfeat/vit_compact_patch16" in outcome.output
    assert "one seed" in outcome.output
    (stored,) = (tmp_path / "out").glob("*.json")
    result = Result.load(stored)
    assert stored.name.startswith("seg-probe--my_photos--nearest")
    assert (result.settings["data"], result.settings["reader"]) == ("my_photos", "folder")
    assert list(result.details["iou_per_class"]) == ["left", "odd_one", "even"]
    assert {name: v["images"] for name, v in result.settings["splits"].items()} == {
        "my_photos/train": 32,
        "my_photos/val": 8,
    }
    tables = {path.name: path.read_text() for path in (tmp_path / "tables").glob("seg-*")}
    stem = "seg-probe--my_photos--pixel-sample--vit_compact_patch16"
    assert r"\toprule" in tables[f"{stem}.tex"]
    assert "| `nearest` |" in tables[f"{stem}.md"]
    assert r"odd\_one & " in tables[f"{stem}--classes.tex"]
    figures = sorted((tmp_path / "figures").glob("seg-probe--my_photos--*"))
    assert [path.suffix for path in figures] == [".pdf", ".png"] * 3
    assert figures[0].read_bytes().startswith(b"%PDF")
    assert Image.open(figures[1]).width > 3 * 400  # image, target, nearest

    report = CliRunner().invoke(
        app,
        [
            *("report", str(tmp_path / "out"), "--out", str(tmp_path / "page")),
            *("--tables", str(tmp_path / "again"), "--figures", str(tmp_path / "again")),
        ],
    )
    assert report.exit_code == 0, report.output
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").glob("seg-*")}
    assert again[f"{stem}.tex"].decode() == tables[f"{stem}.tex"]
    assert again[figures[1].name] == figures[1].read_bytes()
    assert "odd_one" in (tmp_path / "page" / "index.html").read_text()


def test_networks_compute_in_the_type_that_is_asked_for(tmp_path: Path) -> None:
    root = labelled(tmp_path / "my_photos", 10)
    asked = ("--data", "folder", "--root", str(root), "--seeds", "0", "--dtype")
    for dtype in ("float32", "bfloat16"):
        outcome = call(tmp_path, "seg-probe", *asked, dtype)
        assert outcome.exit_code == 0, outcome.output
    assert "features computed in bfloat16" in outcome.output
    results = map(Result.load, (tmp_path / "out").glob("*.json"))
    types = [
        (r.settings["backbone"].get("dtype"), r.settings["upsampler"].get("dtype")) for r in results
    ]
    assert sorted(types, key=str) == [("bfloat16", "bfloat16"), (None, None)]
    data = ("--data", "imagenet", "--root", str(root))
    refused = call(tmp_path, "cam", *data, "--dtype", "float16", quick=())
    assert refused.exit_code == 2
    assert "cam computes in float32 only; leave out --dtype" in refused.output


def test_a_card_is_named_instead_of_a_folder(tmp_path: Path) -> None:
    root = labelled(tmp_path / "data", 10)
    card = tmp_path / "upfeat-data.yaml"
    card.write_text("name: halves\npath: data\n")
    outcome = call(tmp_path, "seg-probe", "--data", str(card), "--seeds", "0")
    assert outcome.exit_code == 0, outcome.output
    assert [path.name.split("--")[1] for path in (tmp_path / "out").glob("*.json")] == ["halves"]
    refused = call(tmp_path, "seg-probe", "--data", str(card), "--root", str(root))
    assert refused.exit_code == 2
    assert "names its folder itself" in refused.output
    missing = call(tmp_path, "seg-probe", "--data", "folder")
    assert missing.exit_code == 2
    assert "name the folder of folder with --root" in " ".join(missing.output.split())


def test_depth_and_video_of_the_users_own(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image = np.random.default_rng(1).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
        write(tmp_path / "room" / split / "images" / "a.png", image)
        write(tmp_path / "room" / split / "depth" / "a.png", np.full(SIZE, 1500, np.uint16))
    room = ("--data", "folder", "--root", str(tmp_path / "room"))
    outcome = call(tmp_path, "depth-probe", *room, "--seeds", "0")
    assert outcome.exit_code == 0, outcome.output
    assert "pixel-sample, room," in outcome.output
    for number in range(3):
        mask = np.zeros(SIZE, np.uint8)
        mask[8:24, 8 + number : 24 + number] = 1
        write(tmp_path / "zoo" / "images" / "dog" / f"{number}.png", image)
        write(tmp_path / "zoo" / "labels" / "dog" / f"{number}.png", mask)
    zoo = ("--data", "folder", "--root", str(tmp_path / "zoo"))
    outcome = call(tmp_path, "vos", *zoo, quick=("input_size=[32, 48]",))
    assert outcome.exit_code == 0, outcome.output
    assert "loftup, zoo," in outcome.output
    assert {path.name.split("--")[1] for path in (tmp_path / "out").glob("*.json")} == {
        "room",
        "zoo",
    }


def test_normals_of_the_users_own(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / "hall" / "images" / f"{number}.png", np.full((*SIZE, 3), 90, np.uint8))
        write(tmp_path / "hall" / "normals" / f"{number}.png", np.full((*SIZE, 3), 200, np.uint8))
    hall = ("--data", "folder", "--root", str(tmp_path / "hall"), "--seeds", "0")
    quick = ("crop_size=32", "score_size=32", "hidden=4", "epochs=1", "batch=4")
    outcome = call(tmp_path, "normals-probe", *hall, quick=quick)
    assert outcome.exit_code == 0, outcome.output
    (stored,) = (tmp_path / "out").glob("normals-probe--hall--nearest*.json")
    settings = Result.load(stored).settings
    assert settings["reader"] == "folder"
    assert {name: v["images"] for name, v in settings["splits"].items()} == {
        "hall/train": 4,
        "hall/val": 1,
    }


@pytest.mark.parametrize("damage", ["class", "size", "names"])
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    root = labelled(tmp_path / "my_photos", 10)
    if damage == "class":
        write(root / "labels" / "03.png", np.full(SIZE, 9, np.uint8))
    elif damage == "size":
        write(root / "labels" / "03.png", np.zeros((32, 47), np.uint8))
    else:
        (root / "classes.txt").write_text("left\nleft\n")
    outcome = call(tmp_path, "seg-probe", "--data", "folder", "--root", str(root))
    assert outcome.exit_code == 2
    text = " ".join(outcome.output.split())
    expected = {
        "class": "03.png holds class 9; classes.txt names classes 0 to 2",
        "size": "03.png is (32, 47), its image",
        "names": "names the class 'left' twice",
    }
    assert expected[damage] in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_figures_never_replace_a_file_of_the_users(tmp_path: Path) -> None:
    root = labelled(tmp_path / "my_photos", 10)
    data = ("--data", "folder", "--root", str(root), "--seeds", "0")
    stem = "seg-probe--my_photos--pixel-sample--vit_compact_patch16"
    own = tmp_path / "tables" / f"{stem}.md"
    own.parent.mkdir()
    own.write_text("mine")
    outcome = call(tmp_path, "seg-probe", *data, "--tables", str(tmp_path / "tables"))
    assert outcome.exit_code != 0
    assert "was not written by upfeat" in " ".join(outcome.output.split())
    assert own.read_text() == "mine"
    assert [path.name for path in own.parent.iterdir() if path.is_file()] == [own.name]


def test_settings_of_known_sets_keep_their_names() -> None:
    """A result that was written before sets of one's own existed is still found."""
    assert "reader" not in ProtocolConfig(preset="p", data="msrc").model_dump(mode="json")
    own = ProtocolConfig(preset="p", data="mine", reader="folder")
    assert json.loads(own.model_dump_json())["reader"] == "folder"


def test_every_protocol_that_reads_labelled_sets_reads_the_users_own() -> None:
    assert OWN == FOLDER_SET
    reads = {name for name, facts in kept_protocols().items() if OWN in facts["data"]}
    assert reads >= {
        "seg-probe",
        "depth-probe",
        "normals-probe",
        "faithfulness",
        "vos",
        "correspondence",
    }
