"""Draw the loss curve of a distillation run and thin its log, for the model card.

python tools/plot_distillation.py RUN/loss.csv --out src/upfeat/backbones/bundled
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import matplotlib.figure
import numpy as np
import typer

from upfeat._files import write_bytes

COLUMNS = ("loss", "cosine", "tokens", "middle")


def read_log(file: Path) -> dict[str, np.ndarray]:
    """Read the numeric columns of `loss.csv`, each (steps,)."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {name: np.array([float(row[name]) for row in rows]) for name in ("step", "lr", *COLUMNS)}


def thin(log: dict[str, np.ndarray], every: int) -> list[list[str]]:
    """Average each run of `every` steps; rows of text with a header."""
    rows = [["step", "lr", *COLUMNS]]
    for start in range(0, len(log["step"]), every):
        part = slice(start, start + every)
        means = [f"{log[name][part].mean():.4f}" for name in COLUMNS]
        rows.append([f"{log['step'][part][-1]:.0f}", f"{log['lr'][part][-1]:.3g}", *means])
    return rows


def draw(rows: Sequence[Sequence[str]]) -> bytes:
    """Draw the thinned curves as a small PNG."""
    values = np.array(rows[1:], dtype=float)
    figure = matplotlib.figure.Figure(figsize=(6, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for column, name in enumerate(COLUMNS, start=2):
        axes.plot(values[:, 0], values[:, column], label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def main(
    log: Annotated[Path, typer.Argument(help="The run's loss.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for loss_curve.png and loss.csv.")],
    every: Annotated[int, typer.Option(help="Steps per row of the thinned log.")] = 10,
) -> None:
    """Write `loss_curve.png` and the thinned `loss.csv`."""
    if (out / "loss.csv").exists() and log.samefile(out / "loss.csv"):
        raise typer.BadParameter(f"{out} holds the log that would be thinned; name another folder")
    rows = thin(read_log(log), every)
    write_bytes(out / "loss.csv", "".join(",".join(row) + "\n" for row in rows).encode())
    write_bytes(out / "loss_curve.png", draw(rows))


if __name__ == "__main__":
    typer.run(main)
