"""The command through its real entry point, in a subprocess."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.main import get_command
from typer.testing import CliRunner

from upfeat.cli.app import app
from upfeat.cli.options import DeviceOption, DtypeOption

COMMAND = [sys.executable, "-m", "upfeat"]
TINY = ("--backbone", "upfeat/vit_compact_patch16", "--input-size", "48", "--size", "48")
RECORDS = ".upfeat/records"
HELP = {
    name: get_args(option)[1].help
    for name, option in (("device", DeviceOption), ("dtype", DtypeOption))
}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300", "UPFEAT_OFFLINE": "1", **environment},
        timeout=120,
        check=False,
    )


def write_images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 255, (50 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{i}.png")
    return folder


def names(folder: Path) -> list[str]:
    """What a user sees in a folder and below; the files of upfeat's own are hidden."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not any(part[0] == "." for part in path.parts))


def test_the_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="upfeat")
    assert script.value == "upfeat.cli:main"


def every_command() -> dict[str, Any]:
    """All commands, and the groups they are in, by the words that call them."""
    found: dict[str, Any] = {"": get_command(app)}
    left = [""]
    while left:
        words = left.pop()
        for name, command in getattr(found[words], "commands", {}).items():
            found[f"{words} {name}".strip()] = command
            left.append(f"{words} {name}".strip())
    assert len(found) > 20
    return found


def test_one_name_for_one_thing_in_every_command() -> None:
    """--upsampler, --backbone, --root, --dtype, --size, --device auto, and no other names."""
    others = {"method", "methods", "network", "model", "data-root", "folder", "precision"}
    others |= {"data-type", "output-size", "out-size", "gpu"}
    for words, command in every_command().items():
        options = {max(each.opts, key=len): each for each in command.params if each.opts}
        assert not {f"--{name}" for name in others} & options.keys(), words
        if "--device" in options and words != "train":  # a recipe names its own
            assert options["--device"].default == "auto", words
        if "--dtype" in options and words != "train":
            assert options["--dtype"].default == "float32", words


def test_every_command_that_runs_networks_takes_device_and_dtype() -> None:
    """But ``reproduce``, whose numbers are float32's, and ``export``, which traces on the CPU."""
    found = 0
    for words, command in every_command().items():
        options = {each.name: each for each in command.params}
        if not {"backbone", "upsampler", "device"} & options.keys() - {"help"}:
            continue
        found += 1
        wanted = {"device", "dtype"}
        wanted -= {"reproduce": {"dtype"}, "export": {"device"}}.get(words, set())
        assert wanted <= options.keys(), words
        shown = {name: getattr(options[name], "help", None) for name in wanted}
        if words not in ("train", "export"):  # a run of training may compute in mixed precision
            others = {name: help for name, help in shown.items() if help != HELP[name]}
            assert not others, words
    assert found > 20


def test_no_flag_of_any_command_shows_a_type() -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    for words in every_command():
        shown = runner.invoke(app, [*words.split(), "--help"]).stdout
        assert "bool" not in shown.lower(), words
        assert "--help" in shown, words
        assert "film" not in shown.lower(), f"{words}: a video has one name"


def test_version_and_help() -> None:
    import upfeat

    assert run("--version").stdout.strip() == upfeat.__version__
    text = run("--help").stdout
    for command in ("list", "info", "upsample"):
        assert command in text


def inside(*arguments: str) -> str:
    """Run the command in this process: a subprocess for each would spend a minute on imports."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list() -> None:
    table = inside("list")
    assert "bilinear" in table
    assert "jafar" in table
    assert json.loads(inside("list", "b*", "--json")) == ["bicubic", "bilinear"]
    assert "jafar.dinov2_vits14" in json.loads(inside("list", "--pretrained", "--json"))
    assert "apache" in inside("list", "jafar*", "--pretrained").lower()
    assert "timm/resnet18" in inside("list", "timm/resnet18*", "--backbones")


def test_list_without_a_match() -> None:
    result = CliRunner().invoke(app, ["list", "zzz*"])
    assert result.exit_code == 2
    assert "nothing matches 'zzz*'" in result.stderr


def test_info() -> None:
    text = inside("info", "jafar")
    assert "2506.11136" in text
    assert "Apache-2.0" in text
    facts = json.loads(inside("info", "loftup.dinov2_vits14", "--json"))
    assert facts["channels"] == 384
    assert facts["guidance mean"] == "0.485, 0.456, 0.406"


def test_info_of_an_unknown_name() -> None:
    result = run("info", "jafr")
    assert result.returncode == 2
    assert "did you mean 'jafar'" in result.stderr
    assert "Traceback" not in result.stderr


def test_folder_with_a_broken_image_then_a_second_run(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos")
    write_images(photos / "more", 1)
    (photos / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    first = run("upsample", photos, "--out", out, *TINY)
    assert first.returncode == 1, first.stderr
    assert "4 done, 0 already there, 1 failed" in first.stdout
    (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    assert failure["file"].endswith("broken.jpg")
    assert "cannot be read" in failure["error"]
    assert (out / "more" / "image0.png").is_file()
    stamps = {name: (out / name).stat().st_mtime_ns for name in names(out) if "image" in name}
    second = run("upsample", photos, "--out", out, *TINY)
    assert second.returncode == 1
    assert "0 done, 4 already there, 1 failed" in second.stdout
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in stamps}
    (photos / "broken.jpg").unlink()
    third = run("upsample", photos, "--out", out, *TINY)
    assert third.returncode == 0
    assert not (out / "failures.jsonl").exists()


def test_changed_settings_or_input_are_computed_again(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 2), tmp_path / "out"
    assert "2 done" in run("upsample", photos, "--out", out, *TINY).stdout
    changed = run("upsample", photos, "--out", out, *TINY, "--upsampler", "bilinear")
    assert "2 done, 0 already" in changed.stdout
    Image.new("RGB", (64, 50), "red").save(photos / "image0.png")
    again = run("upsample", photos, "--out", out, *TINY, "--upsampler", "bilinear")
    assert "1 done, 1 already" in again.stdout
    (out / "image1.png").unlink()
    lost = run("upsample", photos, "--out", out, *TINY, "--upsampler", "bilinear")
    assert "1 done, 1 already" in lost.stdout


def test_files_hold_what_the_pipeline_computes(tmp_path: Path) -> None:
    import upfeat

    photos, out = write_images(tmp_path / "photos", 1), tmp_path / "out"
    image = photos / "image0.png"
    result = run(
        "upsample", image, "--out", out, "--input-size", "48", "--size", "40x30", "--upsampler",
        "bilinear", "--save", "png,safetensors,npz", "--save-dtype", "float32",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert names(out) == ["image0.npz", "image0.png", "image0.safetensors"]
    tensors, arrays = load_file(out / "image0.safetensors"), np.load(out / "image0.npz")
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"), input_size=48)
    expected = pipe(image, output_size=(40, 30))
    assert tensors["high"].shape == (192, 40, 30)
    for name in ("high", "low"):
        wanted = getattr(expected, name).numpy()
        np.testing.assert_allclose(tensors[name].numpy(), wanted, atol=1e-4)
        np.testing.assert_array_equal(arrays[name], tensors[name].numpy())
    record = json.loads((out / RECORDS / "image0.json").read_text())
    assert record["settings"]["upsampler"] == "bilinear"
    assert record["settings"]["output_size"] == [40, 30]
    with safe_open(out / "image0.safetensors", "pt") as file:
        said = {name: json.loads(text) for name, text in file.metadata().items()}
    assert said == json.loads(str(arrays["metadata"]))
    assert said["layout"] == {"high": "C, H', W'", "low": "C, h, w"}
    assert said["image_size"] == [50, 64]
    assert said["low_extent"] == list(expected.low_extent)
    assert said["settings"].items() <= record["settings"].items()


def test_a_run_says_its_bytes_and_stops_above_the_limit(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 1), tmp_path / "out"
    arguments = ["upsample", str(photos), "--out", str(out), "--save", "npz", "--size", "3000"]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*arguments, "--max-gb", "4"])
    assert result.exit_code == 2
    size = 3000 * 3840 * 192 * 2 / 1e9
    assert f"about {size:.3g} GB, and --max-gb allows 4; choose a smaller --size" in result.stderr
    assert not out.exists()


def test_one_basis_for_all(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 2), tmp_path / "out"
    assert run("upsample", photos, "--out", out, *TINY, "--basis", "first").returncode == 0
    basis = out / ".upfeat" / "basis.json"
    other = tmp_path / "other"
    assert run("upsample", photos, "--out", other, *TINY, "--basis", basis).returncode == 0
    for name in ("image0.png", "image1.png"):
        assert (out / name).read_bytes() == (other / name).read_bytes()


def test_features_of_a_photo_in_one_basis(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 2), tmp_path / "out"
    text = inside("show", "pca", str(photos), "--upsampler", "bilinear", "--out", str(out), *TINY)
    assert names(out) == [f"image{i}_pca.{kind}" for i in range(2) for kind in ("json", "png")]
    assert str(out / "image1_pca.png") in text
    record = json.loads((out / "image0_pca.json").read_text())
    assert record["settings"]["upsampler"] == "bilinear"
    assert len(record["explained"]) == 3
    (photos / "broken.png").write_bytes(b"no image")
    line = ["show", "pca", str(photos), "--upsampler", "bilinear", "--out", str(out), *TINY]
    assert CliRunner().invoke(app, line).exit_code == 1


def test_all_methods_on_one_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upfeat.viz import comparison

    for name in ("UPFEAT_WEIGHTS", "UPFEAT_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(comparison, "PER_IMAGE_PIXELS", 0)  # tested with the panel
    photo, out = write_images(tmp_path / "photos", 1) / "image0.png", tmp_path / "out"
    text = inside("show", "compare", str(photo), "--out", str(out), *TINY)
    assert names(out) == ["image0_compare.json", "image0_compare.png"]
    record = json.loads((out / "image0_compare.json").read_text())
    shown = {method["name"].partition(".")[0] for method in record["methods"]}
    left = {method["name"].partition(".")[0]: method["reason"] for method in record["left_out"]}
    assert {"bilinear", "joint_bilateral"} <= shown
    assert shown | set(left) == set(json.loads(inside("list", "--json")))
    assert record["output_size"] == [48, 61]
    assert f"left out: sapa: {left['sapa']}" in text
    assert Image.open(out / "image0_compare.png").width > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jpg"], "absent.jpg"),
        (["{photos}", "--upsampler", "bilinea"], "did you mean 'bilinear'"),
        (["{photos}", "--backbone", "upfeat/nothing"], "upfeat/nothing"),
        (["{photos}", "--backbone", "timm/vit_tiny_patch16_224"], "$UPFEAT_WEIGHTS"),
        (["{photos}", "--upsampler", "jafar"], "jafar must be trained first"),
        (["{photos}", "--upsampler", "jafar.dinov2_vits14"], "looked in four places"),
        (["{photos}", "--save", "tiff"], "unknown format of --save 'tiff'"),
        (["{photos}", "--save", ","], "--save names nothing to write"),
        (["{photos}", "--size", "3x4x5"], "--size must be"),
        (["{photos}", "--dtype", "int8"], "--dtype must be one of"),
        (["{photos}", "--fit", "crop"], "--fit must be pad or resize"),
        (["{photos}", "--basis", "nowhere.json"], "--basis must be"),
        (["{photos}", "--save", "npz", "--size", "500000"], "choose a smaller --size"),
    ],
)
def test_user_errors_are_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path))
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    photos = write_images(tmp_path / "photos", 1)
    filled = [argument.format(photos=photos) for argument in arguments]
    # In this process: a subprocess for each case would spend a minute on imports.
    result = CliRunner().invoke(app, ["upsample", *filled, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_interrupted_run_leaves_whole_files_and_resumes(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 60), tmp_path / "out"
    arguments = ["upsample", photos, "--out", out, *TINY, "--save", "png,npz"]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job hands down an ignored Ctrl-C; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while len(list((out / RECORDS).glob("*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run again to go on" in errors
    done = list((out / RECORDS).glob("*.json"))
    assert 2 <= len(done) < 60
    assert not list(out.rglob("*.part")), "a half-written file stayed"
    for picture in out.glob("*.png"):
        Image.open(picture).verify()
    resumed = run(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{60 - len(done)} done, {len(done)} already there" in resumed.stdout


def test_nothing_of_the_user_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_images(tmp_path / "photos", 2)
    (photos / "image0.json").write_text('{"shapes": []}')
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    monkeypatch.chdir(photos)
    result = CliRunner().invoke(app, ["upsample", ".", "--out", ".", *TINY])
    assert result.exit_code == 2
    assert "image0.png lies where the result of image0.png belongs" in result.stderr
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


@pytest.mark.parametrize("what", [".", "**/*.png", "as by a shell"])
def test_results_are_no_inputs_of_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(write_images(tmp_path / "photos", 1))
    for state in ("1 done, 0 already", "0 done, 1 already", "0 done, 1 already"):
        paths = sorted(map(str, Path().glob("*"))) if what == "as by a shell" else [what]
        assert state in inside("upsample", *paths, *TINY)
    assert names(Path()) == ["image0.png", "out/image0.png"]


def test_panels_of_all_methods_beside_an_image_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upfeat.viz import comparison

    one = comparison.usable_upsamplers
    monkeypatch.setattr("upfeat.viz.usable_upsamplers", lambda backbone: one(backbone, "nearest"))
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("a", "a_compare"):
        Image.new("RGB", (48, 48), "red").save(photos / f"{name}.png")
    (photos / "broken.png").write_bytes(b"no image")
    every = ["show", "compare", str(photos), "--out", str(out), *TINY]
    stems = ("a_compare_compare", "a_compare_compare_compare")
    one_panel = [f"{stem}.{kind}" for stem in stems for kind in ("json", "png")]
    for _ in range(2):
        result = CliRunner(env={"COLUMNS": "300"}).invoke(app, every)
        assert result.exit_code == 1
        assert "failed" in result.stderr
        assert "broken.png" in result.stderr
        assert names(out) == sorted(one_panel)
    (photos / "broken.png").unlink()
    inside("upsample", str(photos), "--upsampler", "bilinear", "--out", str(out), *TINY)
    assert names(out) == sorted([*one_panel, "a.png", "a_compare.png"])
    # Alone the image's panel would be called a_compare.png, which is the other command's.
    alone = ["show", "compare", str(photos / "a.png"), "--out", str(out), *TINY]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, alone)
    assert result.exit_code == 2
    assert "a_compare.png is there already, written by upfeat upsample" in result.stderr


def test_images_beyond_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = write_images(tmp_path / "photos", 1)  # 50 x 64
    out = tmp_path / "out"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    arguments = ["upsample", str(photos), "--out", str(out), "--upsampler", "bilinear", *TINY]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "--max-pixels" in (out / "failures.jsonl").read_text()
    inside(*arguments, "--max-pixels", "3200")
    assert names(out) == ["image0.png"]
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_what_a_folder_holds_beside_images(tmp_path: Path) -> None:
    """Nothing is left out without a word, and nothing that is no image ends the run."""
    photos = write_images(tmp_path / "photos", 1)
    for name in ("b.heic", "c.heic", "notes.txt"):
        (photos / name).touch()
    os.mkfifo(photos / "pipe.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "round").symlink_to("round")
    Image.new("RGB", (30, 20)).save(photos / "d.tga")
    result = run("upsample", photos, "--out", tmp_path / "out", *TINY, "--upsampler", "bilinear")
    assert result.returncode == 1
    assert "2 done, 0 already there, 1 failed" in result.stdout
    assert names(tmp_path / "out") == ["d.png", "failures.jsonl", "image0.png"]
    assert "Traceback" not in result.stderr
    said = " ".join(result.stderr.split())
    assert said.count("2 .heic files") == 1
    assert "pipe.png, a named pipe" in said
    assert "loop.png: it is a link that leads to no file" in said


def test_weights_of_another_backbone_are_warned_of_in_a_line_unless_they_are_meant(
    tmp_path: Path,
) -> None:
    photos = write_images(tmp_path / "in", 1)
    call = ("upsample", photos, *TINY, "--upsampler", "jafar.vit_tiny_patch16_augreg")
    warned = run(*call, "--out", tmp_path / "a")
    assert warned.returncode == 0, warned.stderr
    assert warned.stderr.startswith("warning: the weights of jafar were trained for timm/vit_tiny")
    assert len(warned.stderr.splitlines()) == 1
    meant = run(*call, "--out", tmp_path / "b", "--any-backbone")
    assert (meant.returncode, meant.stderr) == (0, "")
