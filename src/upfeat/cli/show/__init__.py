"""``upfeat show``: pictures of what upsamplers do with photos, over :mod:`upfeat.viz`."""

import typer

from upfeat.cli.show.answers import attention_command, similarity_command
from upfeat.cli.show.features import compare_command, pca_command
from upfeat.cli.show.targets import targets_command

show_app = typer.Typer(
    help="Draw pictures of what upsamplers do with a photo.", no_args_is_help=True
)
show_app.command("attention")(attention_command)
show_app.command("compare")(compare_command)
show_app.command("pca")(pca_command)
show_app.command("similarity")(similarity_command)
show_app.command("targets")(targets_command)
