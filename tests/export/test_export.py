"""Exported graphs against PyTorch: what ``info.abilities.export`` declares, for every method."""

import json
from pathlib import Path

import pytest
import torch

import upfeat
from upfeat.errors import UnsupportedError
from upfeat.export import ExportRecord, export_model

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.export


def test_any_size_matches_at_two_other_sizes(tmp_path: Path) -> None:
    made = export_model(tmp_path, upfeat.create_upsampler("bilinear"))
    assert {p.image for p in made.record.parity} == {(224, 288), (176, 240), (253, 181)}
    assert max(p.relative for p in made.record.parity) < 1e-5
    stored = ExportRecord.model_validate_json((tmp_path / "bilinear.onnx.json").read_text())
    assert stored == made.record
    assert stored.bytes == made.path.stat().st_size
    assert stored.inputs[1]["shape"] == [1, "C", "h", "w"]
    assert json.loads((tmp_path / "bilinear.onnx.json").read_text())["opset"] == 20


def test_values_are_a_third_input(tmp_path: Path) -> None:
    made = export_model(tmp_path, upfeat.create_upsampler("bilinear"), values=True)
    assert [each["name"] for each in made.record.inputs] == ["image", "features", "values"]
    assert max(p.relative for p in made.record.parity) < 1e-5


def test_torch_program_of_fixed_size(tmp_path: Path) -> None:
    upsampler = upfeat.create_upsampler("nearest")
    made = export_model(tmp_path, upsampler, format="torch", height=32, width=48, channels=4)
    program = torch.export.load(made.path)
    image, features = torch.rand(1, 3, 32, 48), torch.rand(1, 4, 2, 3)
    assert program.module()(image, features).equal(upsampler(image, features))


def test_methods_that_optimise_for_an_image_are_refused(tmp_path: Path) -> None:
    upsampler = upfeat.create_upsampler("upsample_anything")
    with pytest.raises(UnsupportedError, match=r"upsample_anything cannot be exported to onnx"):
        export_model(tmp_path, upsampler)
    assert not list(tmp_path.iterdir())


def test_free_sizes_are_refused_where_the_method_has_none(tmp_path: Path) -> None:
    upsampler = upfeat.create_upsampler("naf", dim=32)
    with pytest.raises(UnsupportedError, match=r"naf is exported to onnx at fixed sizes only"):
        export_model(tmp_path, upsampler)


def test_a_file_of_others_stays(tmp_path: Path) -> None:
    (tmp_path / "bilinear.pt2").write_text("mine")
    with pytest.raises(upfeat.errors.ForeignFileError):
        export_model(tmp_path, upfeat.create_upsampler("bilinear"), format="torch")
    assert (tmp_path / "bilinear.pt2").read_text() == "mine"
