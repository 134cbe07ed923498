"""``upfeat export`` on the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from upfeat.cli.app import app
from upfeat.export import ExportRecord

pytestmark = pytest.mark.export


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.output


def test_writes_a_graph_and_says_how_it_compares(tmp_path: Path) -> None:
    code, text = run(
        "bilinear", "--format", "torch", "--height", "32", "--width", "48", "--out", str(tmp_path)
    )
    assert code == 0, text
    assert "image: float32 (1, 3, 32, 48)" in text
    assert "image 32x48: at most" in text
    record = (tmp_path / "bilinear_32x48.torch.json").read_text()
    assert ExportRecord.model_validate_json(record).upsampler == "bilinear"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bilinear", "--height", "tall"], "--height must be a number of pixels or dynamic"),
        (["bilinear", "--uint8"], "--uint8 needs --backbone"),
        (["bilinear", "--ort-web", "dist"], "--ort-web needs --web FOLDER"),
        (["upsample_anything"], "cannot be exported to onnx"),
    ],
)
def test_one_sentence_for_what_does_not_fit(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    code, text = run(*arguments, "--out", str(tmp_path))
    assert code == 2
    assert sentence in " ".join(text.split())
    assert not list(tmp_path.glob("*.onnx"))
