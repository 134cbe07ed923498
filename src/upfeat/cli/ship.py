"""``upfeat export``, ``card`` and ``app``: graphs for other runtimes, model cards, the page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from upfeat.cli.options import (
    DEFAULT_BACKBONE,
    DeviceOption,
    DtypeOption,
    OutOption,
    checked_folder,
    parse_dtype,
)

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
        str, typer.Option(help="Image height in pixels, or 'dynamic'; the output is as large.")
    ] = "dynamic",
    width: Annotated[
        str, typer.Option(help="Image width in pixels, or 'dynamic'; the output is as large.")
    ] = "dynamic",
    dtype: Annotated[
        str, typer.Option(help="Data type of weights and computation: float32, float16, bfloat16.")
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
            help="Write a web page that upsamples photos in the browser into this folder, instead "
            "of one file; with --backbone, or else the bundled encoder.",
        ),
    ] = None,
    ort_web: Annotated[
        Path | None,
        typer.Option(help="With --web: the folder dist of onnxruntime-web; its files are copied."),
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
        raise ValueError("--ort-web needs --web FOLDER, the folder of the page")
    sides = _side(height, "--height"), _side(width, "--width")
    network = None if backbone is None else upfeat.create_backbone(backbone)
    if uint8 and network is None:
        raise ValueError(
            "--uint8 needs --backbone: only a graph with a backbone normalises the image"
        )
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
    _print_export(made)


def _write_page(spec: str, backbone: str, folder: Path, runtime: Path | None) -> None:
    """Write the page, and print how to serve it."""
    import upfeat
    from upfeat.export import RUNTIME_FILES, write_web_page

    network = upfeat.create_backbone(backbone)
    upsampler = upfeat.load_upsampler(spec, network)
    for made in write_web_page(folder, upsampler, network, runtime=runtime, spec=spec):
        _print_export(made)
    if runtime is None:
        typer.echo(
            f"copy {', '.join(RUNTIME_FILES)} into {folder / 'ort'}; they are in the folder dist "
            "of the npm package onnxruntime-web (npm pack onnxruntime-web)"
        )
    typer.echo(f"to serve it: python -m http.server --directory {folder}")


def _side(text: str, option: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} must be a number of pixels or dynamic, got {text!r}")
    return int(text)


def _print_export(made: "Exported") -> None:
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


def card_command(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder of a saved model, of a run of upfeat train, or of a hub repository."
        ),
    ],
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Rewrite the front matter; write a whole card if there is none."
        ),
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="With --write: licence of the weights, such as apache-2.0."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="With --write: results folder of upfeat eval, for this model's scores."),
    ] = None,
) -> None:
    """Check a model card: its front matter for the hub, its ids, and the files that it names.

    Exit code 1 means that something is missing or wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}; name one that save_pretrained wrote")
    if not write and (license is not None or results is not None):
        raise ValueError("--license and --results are options of --write; add it")
    from upfeat.upsamplers.cards import CARD_FILE, card_faults
    from upfeat.upsamplers.files import model_folder

    folder = model_folder(folder)
    if write:
        _write_card(folder, license, results)
        typer.echo(folder / CARD_FILE)
    faults = card_faults(folder)
    for fault in faults:
        typer.echo(fault)
    if faults:
        raise typer.Exit(1)
    if not write:
        typer.echo(f"{folder}: card and files are complete")


def _write_card(folder: Path, license: str | None, results: Path | None) -> None:
    from upfeat.data.feature_cache import weights_fingerprint
    from upfeat.evaluation.card_scores import card_scores
    from upfeat.evaluation.tables import gather_results
    from upfeat.upsamplers.files import load_folder, rewrite_card

    model = load_folder(folder)
    scores = None
    if results is not None:
        own = weights_fingerprint(model.state_dict())
        scores = card_scores(gather_results([results]), own)
        if not scores:
            raise ValueError(
                f"{results} holds no result of this model; run upfeat eval --upsampler {folder}"
            )
    rewrite_card(model, folder, license, scores)


def app_command(
    host: Annotated[
        str,
        typer.Option(help="Address to bind; 0.0.0.0 makes the page reachable from other machines."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port. Default: the first free port from 7860."),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Create a public URL for three days through Gradio's servers."
        ),
    ] = False,
    backbone: Annotated[
        str,
        typer.Option(
            help="Backbones to choose from, separated by commas; clip/NAME enables words."
        ),
    ] = DEFAULT_BACKBONE,
    upsampler: Annotated[
        str,
        typer.Option(
            help="Upsamplers selected at first, separated by commas; others are offered as well."
        ),
    ] = "bilinear,kin.upfeat",
    space: Annotated[
        Path | None,
        typer.Option(
            callback=checked_folder,
            help="Write the files of a Hugging Face Space into this folder instead.",
        ),
    ] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Start a web page to try upsamplers on photos: compare, click pixels, segment by words.

    It works offline; uploaded photos stay on this machine and are removed after an hour. It needs
    Gradio: pip install 'upfeat[app]'.
    """
    from upfeat.app import launch, write_space
    from upfeat.loading import split_specs

    backbones, upsamplers = split_specs(backbone), split_specs(upsampler)
    if space is not None:
        for file in write_space(space, backbones, upsamplers):
            typer.echo(file)
        return
    page = launch(
        backbones,
        upsamplers,
        device=device,
        dtype=parse_dtype(dtype, "--dtype"),
        host=host,
        port=port,
        share=share,
        block=False,
    )
    typer.echo(f"the page is at {page.local_url} (Ctrl-C ends it)")
    if page.share_url:
        typer.echo(f"for everyone, for three days: {page.share_url}")
    page.block_thread()
