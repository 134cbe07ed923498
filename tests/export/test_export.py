"""Exported graphs against PyTorch: what ``info.abilities.export`` declares, for every method."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import upfeat
from tests.tolerances import tolerance
from tools.export_table import SIDES, WIDTH, small
from upfeat.errors import UnsupportedError
from upfeat.export import ExportRecord, export_model

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.export

# Seconds of tracing and converting each.
SLOW_AT_ANY_SIZE = {"anyup", "jafar", "joint_bilateral", "kin", "loftup"}
SLOW = {"anyup", "carafe", "featup_jbu", "joint_bilateral_learned", "liif", "uplift"}
# A minute of converting its windows one by one; tools/export_table.py measures it.
LONGEST = {"sapa"}
# Fourier features and the network behind them multiply a rounding, by up to 22,000.
TOLERANCES = {"ifa": 1e-3, "loftup": 1e-2}
# Its exporter reads neither free sizes nor batch normalisation.
newer_onnx = pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6")


def methods(sizes: str, slow: set[str]) -> list[object]:
    """Names of the methods whose ONNX graphs declare these sizes."""
    known = sorted({*upfeat.list_upsamplers()} - LONGEST)
    names = [name for name in known if small(name).info.abilities.export.onnx in sizes.split()]
    return [pytest.param(name, marks=_marks(name, name in slow)) for name in names]


def _marks(name: str, slow: bool) -> list[pytest.MarkDecorator]:
    normalised = any(isinstance(each, torch.nn.BatchNorm2d) for each in small(name).modules())
    return [pytest.mark.slow] * slow + [newer_onnx] * normalised


@pytest.mark.parametrize("name", methods("dynamic static", SLOW))
def test_fixed_size_in_onnxruntime(name: str, tmp_path: Path) -> None:
    made = export_model(tmp_path, small(name), height=SIDES[0], width=SIDES[1], channels=WIDTH)
    assert made.record.inputs[0]["shape"] == [1, 3, *SIDES]
    assert max(p.relative for p in made.record.parity) < TOLERANCES.get(name, 1e-4)


@newer_onnx
@pytest.mark.parametrize("name", methods("dynamic", SLOW_AT_ANY_SIZE))
def test_any_size_in_onnxruntime(name: str, tmp_path: Path) -> None:
    made = export_model(tmp_path, small(name), channels=WIDTH)
    assert made.record.inputs[0]["shape"] == [1, 3, "H", "W"]
    assert max(p.relative for p in made.record.parity) < TOLERANCES.get(name, 1e-4)


def test_fit_of_colours_in_onnxruntime(tmp_path: Path) -> None:
    upsampler = upfeat.create_upsampler("kin", dim=8, detail=1.0, pretrained=False).eval()
    made = export_model(tmp_path, upsampler, height=SIDES[0], width=SIDES[1], channels=WIDTH)
    assert max(p.relative for p in made.record.parity) < 1e-4


# ONNX Runtime's CPU has no bfloat16.
@pytest.mark.parametrize(
    ("form", "dtype"),
    [("onnx", torch.float16), ("torch", torch.float16), ("torch", torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("name", ["bilinear", "jafar", "kin"])
def test_half_precision(name: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = export_model(
        tmp_path, small(name), format=form, height=48, width=64, channels=WIDTH, dtype=dtype
    )
    kind = str(dtype).removeprefix("torch.")
    assert made.path.name.startswith(f"{name}_{kind}_48x64.")
    assert [each["dtype"] for each in (*made.record.inputs, made.record.output)] == [kind] * 3
    assert max(p.relative for p in made.record.parity) < tolerance(dtype)["rtol"]


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="AOTInductor needs a C++ compiler"
)
def test_compiled_library_of_fixed_size(tmp_path: Path) -> None:
    upsampler = upfeat.create_upsampler("bilinear")
    made = export_model(tmp_path, upsampler, format="aoti", height=32, width=48, channels=4)
    assert made.path.name == "bilinear_32x48.aoti.pt2"
    assert max(p.relative for p in made.record.parity) < tolerance(torch.float32)["rtol"]
    compiled = torch._inductor.aoti_load_package(str(made.path))
    image, features = torch.rand(1, 3, 32, 48), torch.rand(1, 4, 2, 3)
    expected = upsampler(image, features)
    torch.testing.assert_close(compiled(image, features), expected, **tolerance(torch.float32))


def test_backbone_and_normalisation_in_the_graph(tmp_path: Path) -> None:
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    upsampler = upfeat.create_upsampler("bilinear")
    made = export_model(tmp_path, upsampler, backbone, height=32, width=48, image_dtype=torch.uint8)
    assert made.record.inputs == [{"name": "image", "dtype": "uint8", "shape": [1, 3, 32, 48]}]
    assert made.record.output["shape"] == [1, 192, 32, 48]
    assert made.record.image_mean is None
    assert max(p.relative for p in made.record.parity) < 1e-4


def test_sides_that_the_patch_does_not_divide_are_refused(tmp_path: Path) -> None:
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    with pytest.raises(ValueError, match="height must be a multiple of 16, got 30"):
        export_model(tmp_path, None, backbone, height=30, width=32)


@newer_onnx
def test_any_size_matches_at_two_other_sizes(tmp_path: Path) -> None:
    made = export_model(tmp_path, upfeat.create_upsampler("bilinear"))
    assert {p.image for p in made.record.parity} == {(224, 288), (176, 240), (253, 181)}
    assert max(p.relative for p in made.record.parity) < 1e-5
    stored = ExportRecord.model_validate_json((tmp_path / "bilinear.onnx.json").read_text())
    assert stored == made.record
    assert stored.bytes == made.path.stat().st_size
    assert stored.inputs[1]["shape"] == [1, "C", "h", "w"]
    assert json.loads((tmp_path / "bilinear.onnx.json").read_text())["opset"] == 20


@newer_onnx
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


@pytest.mark.parametrize("name", ["guided_filter", pytest.param("liif", marks=pytest.mark.slow)])
def test_openvino_stores_no_results(name: str, tmp_path: Path) -> None:
    """What depends on no input is computed when the graph runs; LIIF's file had 229 MB."""
    pytest.importorskip("openvino")
    sizes = {"height": SIDES[0], "width": SIDES[1], "channels": WIDTH}
    made = [export_model(tmp_path, small(name), format=f, **sizes) for f in ("onnx", "openvino")]
    assert max(p.relative for p in made[1].record.parity) < 1e-4
    assert made[1].record.bytes < 1.5 * made[0].record.bytes
