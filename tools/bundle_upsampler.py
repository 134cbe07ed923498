"""Put a trained upsampler into the package: float16 weights, model card with scores, loss curve.

    python tools/bundle_upsampler.py runs/bundled_universal kin.upfeat --results results

The run folder is one of ``upfeat train``. Scores are taken from the JSON files of
``upfeat eval seg-probe`` that name the run's model. The record in the method's file is written by
hand, with the hash that this prints.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from upfeat._files import write_bytes
from upfeat.checkpoints import file_sha256, read_checkpoint, write_safetensors
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.evaluation.card_scores import card_scores
from upfeat.evaluation.tables import gather_results
from upfeat.upsamplers.cards import PLACE, card_for, split_card
from upfeat.upsamplers.files import load_folder

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "src" / "upfeat" / "upsamplers" / "bundled"
BESIDE = ROOT / "weights"
LIMIT = 4_000_000
SCORES = ("miou_labelled", "accuracy", "band_miou_labelled", "band_accuracy")


def score_lines(results: Path, labels: Sequence[str]) -> list[str]:
    """Return a table of segmentation probes: this model's beside the others'."""
    rows = []
    for file in sorted(results.glob("seg-probe--*.json")):
        content = json.loads(file.read_text())
        data, label = content["settings"]["data"], content["label"]
        backbone = content["settings"]["backbone"]["name"]
        scores = content["scores"]
        if not scores.keys() >= set(SCORES):  # a preset without scores along boundaries
            continue
        cells = [f"{scores[s]['mean']:.1f} ± {scores[s]['deviation']:.1f}" for s in SCORES]
        own = label in labels
        rows.append((data, backbone, f"**{label}**" if own else label, *cells))
    header = (
        "data",
        "backbone",
        "upsampler",
        "mIoU",
        "accuracy",
        "boundary mIoU",
        "boundary accuracy",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in sorted(rows)]


def with_front_matter(model: Path, text: str, results: Path | None, labels: Sequence[str]) -> str:
    """Return a card's text behind what the hub reads of the model: licence, backbone, scores.

    Scores are those of the weights under these labels: other settings of them have other labels.
    """
    up = load_folder(model)
    up.info = dataclasses.replace(up.info, weights_license="Apache-2.0")
    own = weights_fingerprint(up.half().float().state_dict())  # as the package's file has them
    found = [] if results is None else gather_results([results])
    scores = card_scores([result for result in found if result.label in labels], own)
    return card_for(up, up.trained_for, text, scores)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="architecture.tag")
    parser.add_argument("--results", type=Path)
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        help="of the model in the results; default: its name",
    )
    parser.add_argument(
        "--beside", action="store_true", help="into weights/, which is not in the wheel"
    )
    parser.add_argument("--notes", type=Path, help="Markdown that is added to the card")
    arguments = parser.parse_args(argv)
    labels = arguments.label or [arguments.name]
    model = arguments.run / "model"
    state = read_checkpoint(model / "model.safetensors")
    half = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    folder = BESIDE if arguments.beside else BUNDLED
    folder.mkdir(exist_ok=True)
    target = folder / f"{arguments.name}.safetensors"
    write_safetensors(target, half, {"format": "pt"})
    if target.stat().st_size > LIMIT:
        raise SystemExit(f"{target.name} has {target.stat().st_size} bytes, more than {LIMIT}")
    _, card = split_card((model / "README.md").read_text())
    first, rest = card.split("\n", 1)
    call = f'upsampler = upfeat.create_upsampler("{arguments.name}")'
    rest = rest.replace(f'upsampler = upfeat.Upsampler.from_pretrained("{PLACE}")', call)
    extra = [] if arguments.notes is None else [arguments.notes.read_text().rstrip(), ""]
    if arguments.results is not None:
        extra += [
            "## Scores",
            "",
            "`upfeat eval seg-probe`: a linear probe on upsampled features, validation splits, "
            "mean ± standard deviation of three seeds; boundary: pixels within 5 pixels of a label "
            "boundary.",
            "",
            *score_lines(arguments.results, labels),
            "",
        ]
    before, settings = rest.split("## All settings", 1)
    text = "\n".join([f"{first} (`{arguments.name}`)", before.rstrip("\n"), "", *extra])
    write_bytes(
        target.with_suffix(".md"),
        with_front_matter(
            model, f"{text}\n## All settings{settings}", arguments.results, labels
        ).encode(),
    )
    write_bytes(target.with_suffix(".csv"), (arguments.run / "log.csv").read_bytes())
    sys.stdout.write(f"{target.name}: {target.stat().st_size:,} bytes, {file_sha256(target)}\n")


if __name__ == "__main__":
    main()
