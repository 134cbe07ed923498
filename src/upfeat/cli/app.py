"""The commands of ``upfeat`` and what they share."""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

import upfeat
from upfeat.cli.bench import bench_command
from upfeat.cli.bulk import extract_command, upsample_command
from upfeat.cli.errors import Commands
from upfeat.cli.eval import eval_app
from upfeat.cli.listing import cache_app, info_command, list_command
from upfeat.cli.report import report_command
from upfeat.cli.reproduce import reproduce_command
from upfeat.cli.ship import app_command, card_command, export_command
from upfeat.cli.show import show_app
from upfeat.cli.show.answers import segment_command
from upfeat.cli.train import train_command

app = typer.Typer(
    name="upfeat",
    cls=Commands,
    help="Sharp feature maps from vision backbones, at any resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_command)
app.command("info")(info_command)
app.command("upsample")(upsample_command)
app.command("extract")(extract_command)
app.command("bench")(bench_command)
app.command("train")(train_command)
app.add_typer(show_app, name="show")
app.command("segment")(segment_command)
app.add_typer(eval_app, name="eval")
app.add_typer(cache_app, name="cache")
app.command("app")(app_command)
app.command("export")(export_command)
app.command("report")(report_command)
app.command("reproduce")(reproduce_command)
app.command("card")(card_command)


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(upfeat.__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")] = False,
) -> None:
    """Sharp feature maps from vision backbones, at any resolution."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("upfeat").setLevel(logging.DEBUG if verbose else logging.INFO)
