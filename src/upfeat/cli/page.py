"""``upfeat app``: the interactive page."""

from pathlib import Path
from typing import Annotated

import typer

from upfeat.cli.options import DEFAULT_BACKBONE, DeviceOption, checked_folder

__all__ = ["app_command"]


def app_command(
    host: Annotated[
        str, typer.Option(help="Address; 0.0.0.0 serves other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. Default: the first free from 7860.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Public address for three days, by Gradio's servers.")
    ] = False,
    backbone: Annotated[
        str, typer.Option(help="Backbones to choose from, with commas; clip/NAME takes words.")
    ] = DEFAULT_BACKBONE,
    upsampler: Annotated[
        str, typer.Option(help="Upsamplers chosen at first, with commas; others are offered, too.")
    ] = "bilinear,kin.upfeat",
    space: Annotated[
        Path | None,
        typer.Option(
            callback=checked_folder,
            help="Write the files of a Hugging Face Space into this folder instead.",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Open a page to try upsamplers on photos: compare, click pixels, ask for words; offline.

    Needs the extra app. Uploaded photos stay on this machine and are removed after an hour.
    """
    from upfeat.app import launch, write_space
    from upfeat.loading import split_specs

    backbones, upsamplers = split_specs(backbone), split_specs(upsampler)
    if space is not None:
        for file in write_space(space, backbones, upsamplers):
            typer.echo(file)
        return
    page = launch(
        backbones, upsamplers, device=device, host=host, port=port, share=share, block=False
    )
    typer.echo(f"the page is at {page.local_url} (Ctrl-C ends it)")
    if page.share_url:
        typer.echo(f"for everyone, for three days: {page.share_url}")
    page.block_thread()
