"""Measure the packaged encoder beside its teacher: agreement, and a linear probe on CamVid.

Agreement, per set of images that the distillation never saw:

- ``cosine``: mean cosine between student and teacher token over all tokens;
- ``cosine_centred``: the same after the teacher's mean token of the set was subtracted from both,
  so that a shared offset earns nothing;
- ``cosine_of_mean_token``: what a constant answer, that mean token, would score in ``cosine``.

Images keep their shape: the short side becomes ``--short-side``, both sides are rounded to
multiples of the patch, bicubic.

Probe: CamVid, 11 classes, label 11 ignored. Images are resized to 352 x 480 (height x width), so
the token grid is 22 x 30. One linear layer on tokens standardised per channel (statistics of the
training tokens) is trained on all 367 training images with cross-entropy against each cell's mix
of labels (mean one-hot label over the cell; cells weighted by their labelled part). Score on the
101 validation images: logits resized bilinearly to the label's 360 x 480, argmax, mIoU over one
confusion matrix. Student and teacher get the same protocol and seeds.

    python tools/evaluate_encoder.py --data DATA --teacher TEACHER.safetensors > figures.json
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from distill_encoder import TEACHER_NAME, split_unseen
from PIL import Image
from torch import Tensor, nn

from upfeat.backbones import create_backbone

log = logging.getLogger("evaluate_encoder")

STUDENT_SPEC = "upfeat/vit_compact_patch16"
NUM_CLASSES, IGNORED = 11, 11
PROBE_SIZE = (352, 480)
PROBE = {"epochs": 30, "batch_tokens": 4096, "lr": 3e-3, "weight_decay": 1e-4, "seeds": [0, 1, 2]}


def read_image(file: Path, size: tuple[int, int]) -> Tensor:
    """Read an image as (1, 3, H, W) in [0, 1], resized to `size` = (H, W)."""
    with Image.open(file) as opened:
        image = opened.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)
    # (H, W, 3) -> (1, 3, H, W)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def fitted_size(file: Path, short_side: int, multiple: int) -> tuple[int, int]:
    """Size (H, W) of the image with its short side at `short_side`, in steps of `multiple`."""
    with Image.open(file) as opened:
        width, height = opened.size
    scale = short_side / min(width, height)
    return tuple(max(1, round(s * scale / multiple)) * multiple for s in (height, width))


@torch.inference_mode()
def encode(backbone: nn.Module, image: Tensor) -> Tensor:
    """Features (1, C, h, w) of an image (1, 3, H, W) in [0, 1], normalised for the backbone."""
    mean = torch.tensor(backbone.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(backbone.image_std).view(1, 3, 1, 1)
    return backbone((image - mean) / std).float()


# --- agreement ----------------------------------------------------------------------------------


def token_agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Cosines between tokens (N, C) of student and teacher; see the top of the file."""
    mean = teacher.mean(0, keepdim=True)
    pairs = {
        "cosine": (student, teacher),
        "cosine_centred": (student - mean, teacher - mean),
        "cosine_of_mean_token": (mean.expand_as(teacher), teacher),
    }
    return {
        k: round(F.cosine_similarity(a, b, dim=-1).mean().item(), 4) for k, (a, b) in pairs.items()
    }


def agreement(
    student: nn.Module, teacher: nn.Module, files: Sequence[Path], short_side: int
) -> dict[str, float]:
    """Agreement of two backbones over all tokens of some image files."""
    tokens: tuple[list[Tensor], list[Tensor]] = ([], [])
    for file in files:
        image = read_image(file, fitted_size(file, short_side, 16))
        for backbone, found in zip((student, teacher), tokens, strict=True):
            found.append(encode(backbone, image)[0].flatten(1).T)  # (C, h, w) -> (h*w, C)
    return {"images": len(files), **token_agreement(torch.cat(tokens[0]), torch.cat(tokens[1]))}


def unseen_sets(data: Path) -> dict[str, list[Path]]:
    """The image sets that the distillation did not train on."""
    _, held_out = split_unseen(list((data / "imagenet_sample/images").glob("*.jpg")))
    return {
        "imagenet_sample_held_out": held_out,
        "camvid_val": sorted((data / "camvid/val").glob("*.jpg")),
        "msrc_val": sorted((data / "msrc/val/images").glob("*.jpg")),
    }


# --- linear probe -------------------------------------------------------------------------------


def camvid_pairs(data: Path, split: str) -> list[tuple[Path, Path]]:
    """(image, annotation) files of a CamVid split."""
    root = data / "camvid"
    return [
        (root / image, root / label)
        for image, label in (
            line.split() for line in (root / f"{split}.txt").read_text().splitlines()
        )
    ]


def read_label(file: Path) -> Tensor:
    """Read a label map (H, W) as int64."""
    with Image.open(file) as opened:
        return torch.from_numpy(np.array(opened)).long()


def cell_labels(label: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean one-hot label of each cell, (H, W) -> (h*w, NUM_CLASSES), without ignored pixels."""
    one_hot = F.one_hot(label, NUM_CLASSES + 1)[..., :NUM_CLASSES]
    # (H, W, K) -> (K, h, w) -> (h*w, K)
    return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), grid).flatten(1).T


def probe_tokens(backbone: nn.Module, pairs: Sequence[tuple[Path, Path]]) -> tuple[Tensor, Tensor]:
    """All tokens (N, C) of the images and the label mix (N, K) of their cells."""
    tokens, targets = [], []
    for image_file, label_file in pairs:
        features = encode(backbone, read_image(image_file, PROBE_SIZE))[0]
        tokens.append(features.flatten(1).T)  # (C, h, w) -> (h*w, C)
        targets.append(cell_labels(read_label(label_file), features.shape[-2:]))
    return torch.cat(tokens), torch.cat(targets)


def token_batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of shuffled batches, for all epochs."""
    for _ in range(PROBE["epochs"]):
        yield from torch.randperm(count, generator=generator).split(PROBE["batch_tokens"])


def fit_probe(tokens: Tensor, targets: Tensor, seed: int) -> nn.Linear:
    """Train the linear head on standardised tokens (N, C) and label mixes (N, K)."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(tokens.shape[1], targets.shape[1])
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=PROBE["lr"], weight_decay=PROBE["weight_decay"]
    )
    batches = PROBE["epochs"] * -(-len(tokens) // PROBE["batch_tokens"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, batches)
    for index in token_batches(len(tokens), generator):
        log_probability = head(tokens[index]).log_softmax(-1)
        # Cells count by their labelled part, because the mix of a cell sums to that part.
        loss = -(targets[index] * log_probability).sum() / targets[index].sum().clamp_min(1e-6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head


def confusion(prediction: Tensor, label: Tensor) -> Tensor:
    """Confusion matrix (true class, predicted class) over pixels that are not ignored."""
    known = label != IGNORED
    joint = label[known] * NUM_CLASSES + prediction[known]
    return torch.bincount(joint, minlength=NUM_CLASSES**2).view(NUM_CLASSES, NUM_CLASSES)


def scores(matrix: Tensor) -> dict[str, float]:
    """MIoU over the classes that occur, and pixel accuracy, in per cent."""
    hit = matrix.diag().double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
    iou = hit[union > 0] / union[union > 0]
    return {
        "miou": round(100 * iou.mean().item(), 2),
        "pixel_accuracy": round(100 * (hit.sum() / matrix.sum()).item(), 2),
    }


@torch.no_grad()
def score_heads(
    backbone: nn.Module,
    heads: Sequence[nn.Module],
    pairs: Sequence[tuple[Path, Path]],
    statistics: tuple[Tensor, Tensor],
) -> list[dict[str, float]]:
    """Score each head at the full size of the labels."""
    mean, std = statistics
    matrices = [torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.long) for _ in heads]
    for image_file, label_file in pairs:
        features = encode(backbone, read_image(image_file, PROBE_SIZE))
        label = read_label(label_file)
        tokens = (features.permute(0, 2, 3, 1) - mean) / std  # (1, C, h, w) -> (1, h, w, C)
        for head, matrix in zip(heads, matrices, strict=True):
            logits = head(tokens).permute(0, 3, 1, 2)  # (1, h, w, K) -> (1, K, h, w)
            logits = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
            matrix += confusion(logits[0].argmax(0), label)
    return [scores(matrix) for matrix in matrices]


def linear_probe(backbone: nn.Module, data: Path) -> dict[str, Any]:
    """Probe one backbone on CamVid: mean, spread and every seed's score."""
    tokens, targets = probe_tokens(backbone, camvid_pairs(data, "train"))
    mean, std = tokens.mean(0), tokens.std(0).clamp_min(1e-6)
    tokens = (tokens - mean) / std
    heads = [fit_probe(tokens, targets, seed) for seed in PROBE["seeds"]]
    per_seed = score_heads(backbone, heads, camvid_pairs(data, "val"), (mean, std))
    miou = np.array([score["miou"] for score in per_seed])
    return {
        "miou": round(float(miou.mean()), 2),
        "miou_std": round(float(miou.std()), 2),
        "pixel_accuracy": round(float(np.mean([s["pixel_accuracy"] for s in per_seed])), 2),
        "per_seed": per_seed,
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder with camvid, msrc and imagenet_sample.")],
    teacher: Annotated[Path, typer.Option(help="Weights of the teacher, safetensors.")],
    student: Annotated[Path | None, typer.Option(help="Weights; default: the packaged.")] = None,
    short_side: Annotated[tuple[int, int], typer.Option(help="Of the agreement.")] = (224, 448),
    probe: Annotated[bool, typer.Option(help="Run the linear probe too.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Print agreement and probe figures, with the settings that made them, as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    encoders = {
        "student": create_backbone(STUDENT_SPEC, weights=student),
        "teacher": create_backbone(f"timm/{TEACHER_NAME}", weights=teacher),
    }
    result: dict[str, Any] = {
        "settings": {
            "student": str(student.name if student else STUDENT_SPEC),
            "teacher": teacher.name,
            "probe": PROBE | {"image_size": PROBE_SIZE},
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "agreement": {},
    }
    for side in short_side:
        for name, files in unseen_sets(data).items():
            figures = agreement(encoders["student"], encoders["teacher"], files, side)
            result["agreement"][f"{name}@{side}"] = figures
            log.info("%s at short side %d: %s", name, side, figures)
    if probe:
        result["camvid_probe"] = {k: linear_probe(b, data) for k, b in encoders.items()}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
