"""``upfeat export``: a method, with its backbone or without, as a graph for other runtimes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfeat.cli.options import DEFAULT_BACKBONE, OutOption, checked_folder, parse_dtype

if TYPE_CHECKING:
    from upfeat.export import Exported


def export_command(
    spec: Annotated[
        str,
        typer.Argument(
            help="Upsampler: NAME, NAME.TAG, NAME(OPTION=VALUE), a saved folder or a hub id; "
            "'none' exports the backbone alone."
        ),
    ],
    format: Annotated[
        Literal["onnx", "torch", "openvino", "aoti"],
        typer.Option(
            help="Format of the exported file: ONNX, torch.export, OpenVINO or AOTInductor."
        ),
    ] = "onnx",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Backbone (timm/NAME or upfeat/NAME) to include, with both normalisations; "
            "the input is then an image in [0, 1]. Without it: normalised image and features."
        ),
    ] = None,
    height: Annotated[
        str, typer.Option(help="Height or width of image and output in pixels, or 'dynamic'.")
    ] = "dynamic",
    width: Annotated[
        str, typer.Option(help="Height or width of image and output in pixels, or 'dynamic'.")
    ] = "dynamic",
    dtype: Annotated[
        str, typer.Option(help="Data type of the weights: float32, float16, bfloat16.")
    ] = "float32",
    uint8: Annotated[
        bool, typer.Option("--uint8", help="With --backbone: the input image is uint8, 0 to 255.")
    ] = False,
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="Without --backbone: a third input, the values to upsample (e.g. logits).",
        ),
    ] = False,
    feature_dim: Annotated[
        int, typer.Option(min=1, help="Feature channels, if the method takes any number.")
    ] = 384,
    web: Annotated[
        Path | None,
        typer.Option(
            callback=checked_folder,
            help="Instead: write a page into this folder that upsamples in the browser, with "
            "--backbone or the bundled encoder.",
        ),
    ] = None,
    ort_web: Annotated[
        Path | None,
        typer.Option(help="With --web: the folder dist of onnxruntime-web, copied into the page."),
    ] = None,
    out: OutOption = Path("exported"),
) -> None:
    """Export an upsampler to ONNX, torch.export, OpenVINO or AOTInductor.

    The exported file is run on random inputs (of three sizes if sizes are dynamic) and compared
    with PyTorch; the differences are written beside it as JSON.

      upfeat export kin.upfeat --out exported
      upfeat export kin.upfeat --backbone upfeat/vit_compact_patch16 --height 448 --width 448
    """
    import torch

    import upfeat
    from upfeat.export import export_model

    if web is not None:
        return _write_page(spec, backbone or DEFAULT_BACKBONE, web, ort_web)
    if ort_web is not None:
        raise ValueError("--ort-web belongs to --web FOLDER; name the page's folder, too")
    sides = _side(height, "--height"), _side(width, "--width")
    network = None if backbone is None else upfeat.create_backbone(backbone)
    if uint8 and network is None:
        raise ValueError("--uint8 is for graphs that hold the normalisation; name a --backbone")
    upsampler = None
    if spec != "none":
        upsampler = upfeat.load_upsampler(spec, feature_dim if network is None else network)
    made = export_model(
        out,
        upsampler,
        network,
        format=format,
        spec=spec,
        height=sides[0],
        width=sides[1],
        dtype=parse_dtype(dtype, "--dtype"),
        image_dtype=torch.uint8 if uint8 else torch.float32,
        values=values,
        channels=feature_dim,
    )
    _print(made)


def _write_page(spec: str, backbone: str, folder: Path, runtime: Path | None) -> None:
    """Write the page, and say how to serve it."""
    import upfeat
    from upfeat.export import RUNTIME_FILES, write_web_page

    network = upfeat.create_backbone(backbone)
    upsampler = upfeat.load_upsampler(spec, network)
    for made in write_web_page(folder, upsampler, network, runtime=runtime, spec=spec):
        _print(made)
    if runtime is None:
        typer.echo(
            f"put {', '.join(RUNTIME_FILES)} into {folder / 'ort'}: npm pack onnxruntime-web, "
            "folder dist"
        )
    typer.echo(f"serve it: python -m http.server --directory {folder}")


def _side(text: str, option: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} must be a number of pixels or dynamic, got {text!r}")
    return int(text)


def _print(made: "Exported") -> None:
    """Print the file and how it compares with PyTorch."""
    record = made.record
    typer.echo(f"{made.path}  {record.bytes / 1e6:.1f} MB")
    for each in (*record.inputs, record.output):
        typer.echo(f"  {each['name']}: {each['dtype']} {tuple(each['shape'])}")
    for one in record.parity:
        height, width = one.image
        typer.echo(
            f"  image {height}x{width}: at most {one.difference:.1e} from PyTorch "
            f"(largest value {one.scale:.3g})"
        )
