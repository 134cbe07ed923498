"""A static page that upsamples in the browser, with ONNX Runtime Web."""

import json
from importlib import resources
from pathlib import Path

from upfeat._files import OwnFiles
from upfeat.backbones.base import Backbone
from upfeat.errors import UnsupportedError
from upfeat.export.models import MAKER, Exported, export_model
from upfeat.upsamplers.base import Upsampler

__all__ = ["RUNTIME_FILES", "write_web_page"]

PAGE_FILES = ("index.html", "page.css", "page.js")
RUNTIME_FILES = (
    "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
"""What the page needs of the npm package onnxruntime-web, from its folder ``dist``."""


def write_web_page(
    out: str | Path,
    upsampler: Upsampler,
    backbone: Backbone,
    *,
    runtime: str | Path | None = None,
    spec: str | None = None,
) -> list[Exported]:
    """Write a page with its two graphs: photo, low-res and upsampled features, computed there.

    The features' three principal components are upsampled, not the features: for a method that
    commutes with a linear head the picture is the same, at a fraction of the cost.

    Args:
        out: folder of the page, to be served over HTTP.
        upsampler: one whose ``info.abilities.linear``, such as ``kin.upfeat``.
        backbone: a small one.
        runtime: folder with :data:`RUNTIME_FILES`, which are copied to ``out/ort``; None leaves
            them to the caller.
        spec: how the upsampler was named, for the record.

    Returns:
        The exported encoder and upsampler.

    Raises:
        UnsupportedError: the upsampler is not linear in its values, or cannot be exported.
        FileNotFoundError: a file of the runtime is missing.
    """
    if not upsampler.info.abilities.linear:
        raise UnsupportedError(
            f"the page upsamples three principal components instead of all features, which needs a "
            f"method with info.abilities.linear; {upsampler.info.name} has not, kin.upfeat has"
        )
    place = Path(out)
    found = [] if runtime is None else [Path(runtime, name) for name in RUNTIME_FILES]
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(
                2, "the page needs it from the folder dist of onnxruntime-web", str(path)
            )
    encoder = export_model(place, None, backbone, name="encoder")
    sharp = export_model(place, upsampler, name="upsampler", values=True, spec=spec)
    mean, std = upsampler.guidance_statistics(backbone)
    settings = {
        "encoder": encoder.path.name,
        "upsampler": sharp.path.name,
        "multiple": backbone.size_multiple,
        "mean": list(mean),
        "std": list(std),
    }
    own = OwnFiles(place)
    own.write("settings.json", (json.dumps(settings, indent=2) + "\n").encode(), MAKER)
    for name in PAGE_FILES:
        content = (resources.files("upfeat.export") / "web" / name).read_bytes()
        own.write(name, content, MAKER)
    for path in found:
        (place / "ort").mkdir(exist_ok=True)
        OwnFiles(place / "ort").write(path.name, path.read_bytes(), MAKER)
    return [encoder, sharp]
