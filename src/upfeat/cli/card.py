"""``upfeat card``: the model card of a saved model, checked or written."""

from pathlib import Path
from typing import Annotated

import typer


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
        raise ValueError("--license and --results say what is written; add --write")
    from upfeat.upsamplers.cards import CARD_FILE, card_faults
    from upfeat.upsamplers.files import model_folder

    folder = model_folder(folder)
    if write:
        _write(folder, license, results)
        typer.echo(folder / CARD_FILE)
    faults = card_faults(folder)
    for fault in faults:
        typer.echo(fault)
    if faults:
        raise typer.Exit(1)
    if not write:
        typer.echo(f"{folder}: card and files are complete")


def _write(folder: Path, license: str | None, results: Path | None) -> None:
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
