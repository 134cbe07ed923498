"""``upfeat app``: the interactive page."""

from pathlib import Path
from typing import Annotated

import typer

from upfeat.cli.options import DEFAULT_BACKBONE, DeviceOption, checked_folder

__all__ = ["app_command"]


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
    device: DeviceOption = "auto",
) -> None:
    """Open a page to try upsamplers on photos: compare, click pixels, segment by words; offline.

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
