"""Distil the compact ViT that ships with the package from a deeper frozen ViT.

The student has the teacher's width and patch size and fewer blocks. Patch embedding, positions,
class token, final norm and an evenly spaced choice of blocks start as copies of the teacher's.
Student and teacher then see the same augmented views, and the student learns the teacher's
final-norm patch tokens t from its own tokens s:

    loss = (1 - cos(s, t)) + smooth_l1(z(s), z(t)) + w * smooth_l1(z(s_mid), z(t_mid))

with z subtracting mean and dividing by standard deviation of the teacher's tokens, per channel
(consistent views as in Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent", arXiv 2106.05237).

Everything random is a function of (seed, step), so a run that was stopped and resumed from its
checkpoint gives the loss curve of a run that was never stopped.

    python tools/distill_encoder.py --data DATA --teacher TEACHER.safetensors --run-dir RUN
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from upfeat import _compat  # noqa: F401  (declares torchvision's operators before timm needs them)
from upfeat._files import write_bytes
from upfeat.checkpoints import write_safetensors

# isort: split
import timm
from timm.models.vision_transformer import VisionTransformer

log = logging.getLogger("distill_encoder")

TEACHER_NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
TRAIN_FOLDERS = (
    "camvid/train",
    "msrc/train/images",
    "nyuv2/train/images",
    "bsds500/images/train",
    "coco_objects/images",
)
LOG_FIELDS = ("step", "height", "width", "lr", "loss", "cosine", "tokens", "middle", "seconds")
IMAGE_MEAN = IMAGE_STD = 0.5


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Every setting that changes the weights a run ends with.

    Attributes:
        seed: Seed of views, order and jitter.
        knots: (step, factor) of the learning rates, linear in between; the last step ends the run.
        lr: Peak learning rate of AdamW, for all but the matrices of the blocks.
        muon_lr: Peak learning rate of Muon, for the matrices of the blocks.
        weight_decay: Weight decay of matrices and filters; vectors and positions have none.
        tokens_per_step: Patch tokens in one batch, whatever the size of the views.
        blocks: Indices of the teacher blocks that the student's blocks start from.
        middle: (student block, teacher block, weight) of the intermediate loss.
        views: (height, width, probability) of the views; one size is drawn per step.
        crop_area: Smallest part of the image's area that a crop keeps.
        jitter: Largest relative change of brightness, contrast and saturation.
        bf16: Run blocks under bfloat16 autocast; weights and losses stay float32.
    """

    seed: int = 0
    knots: tuple[tuple[int, float], ...] = ((0, 0.01), (80, 1.0), (1200, 1.0), (1800, 0.0))
    lr: float = 1e-3
    muon_lr: float = 4e-3
    weight_decay: float = 0.03
    tokens_per_step: int = 16 * 196
    blocks: tuple[int, ...] = (0, 2, 5, 8, 11)
    middle: tuple[int, int, float] = (2, 5, 0.3)
    views: tuple[tuple[int, int, float], ...] = (
        (224, 224, 0.50),
        (160, 160, 0.08),
        (192, 288, 0.10),
        (288, 192, 0.06),
        (240, 320, 0.10),
        (336, 336, 0.06),
        (352, 480, 0.10),
    )
    crop_area: float = 0.3
    jitter: float = 0.3
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.knots[-1][0]


# --- data ---------------------------------------------------------------------------------------


def split_unseen(
    files: Sequence[Path], count: int = 60, seed: int = 0
) -> tuple[list[Path], list[Path]]:
    """Split files into (seen, unseen); the unseen ones depend on the names and the seed only."""
    ordered = sorted(files)
    unseen = set(random.Random(seed).sample(ordered, count))
    return [f for f in ordered if f not in unseen], sorted(unseen)


def training_files(data: Path) -> list[Path]:
    """List the training images: train splits, `imagenet_sample` without its unseen part."""
    seen, _ = split_unseen(list((data / "imagenet_sample/images").glob("*.jpg")))
    files = seen + [f for d in TRAIN_FOLDERS for f in sorted((data / d).glob("*.jpg"))]
    if not files:
        raise ValueError(f"no training image under {data}; expected {', '.join(TRAIN_FOLDERS)}")
    return files


def load_images(files: Sequence[Path], short_side: int = 352) -> list[Image.Image]:
    """Decode all images once, in RGB, no larger than the largest view needs."""
    images = []
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        scale = short_side / min(image.size)
        if scale < 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
        images.append(image)
    return images


def crop_box(
    rng: np.random.Generator, size: tuple[int, int], aspect: float, area: float
) -> tuple[float, ...]:
    """Draw a crop (left, top, right, bottom) of an image of `size` (width, height).

    The crop keeps `area` to 1 of the image's area where that fits, at `aspect` (width / height)
    times a factor between 3/4 and 4/3.
    """
    width, height = size
    ratio = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    target = rng.uniform(area, 1.0) * width * height
    crop_w = min(math.sqrt(target * ratio), width)
    crop_h = min(math.sqrt(target / ratio), height)
    left, top = rng.uniform(0, width - crop_w), rng.uniform(0, height - crop_h)
    return left, top, left + crop_w, top + crop_h


def colour_jitter(batch: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of each image of (B, 3, H, W) in [0, 1]."""
    draws = rng.uniform(1 - strength, 1 + strength, size=(3, len(batch), 1, 1, 1))
    brightness, contrast, saturation = torch.from_numpy(draws).to(batch.dtype)
    batch = batch * brightness
    level = batch.mean(dim=(1, 2, 3), keepdim=True)
    batch = level + (batch - level) * contrast
    grey = batch.mean(dim=1, keepdim=True)
    return (grey + (batch - grey) * saturation).clamp(0, 1)


def make_batch(
    images: Sequence[Image.Image], config: DistillConfig, step: int, patch: int
) -> Tensor:
    """Make the normalised views (B, 3, H, W) of one step; depends on (config, step) only."""
    rng = np.random.default_rng([config.seed, step])
    chances = np.array([p for _, _, p in config.views])
    height, width, _ = config.views[rng.choice(len(chances), p=chances / chances.sum())]
    count = max(1, config.tokens_per_step // ((height // patch) * (width // patch)))
    views = []
    for index in rng.choice(len(images), size=count, replace=count > len(images)):
        image = images[index]
        box = crop_box(rng, image.size, width / height, config.crop_area)
        view = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
        views.append(view[:, ::-1] if rng.random() < 0.5 else view)
    # (B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]
    batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
    return (colour_jitter(batch, rng, config.jitter) - IMAGE_MEAN) / IMAGE_STD


# --- models -------------------------------------------------------------------------------------


def load_teacher(file: Path) -> VisionTransformer:
    """Build the frozen ViT-Tiny teacher from a local weight file."""
    teacher = timm.create_model(TEACHER_NAME, pretrained=False, dynamic_img_size=True)
    teacher.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=True)
    return teacher.eval().requires_grad_(False)


def build_student(teacher: VisionTransformer, blocks: Sequence[int]) -> VisionTransformer:
    """Build a ViT of the teacher's width from copies of `blocks` of the teacher."""
    student = VisionTransformer(
        img_size=teacher.patch_embed.img_size,
        patch_size=teacher.patch_embed.patch_size,
        embed_dim=teacher.embed_dim,
        depth=len(blocks),
        num_heads=teacher.blocks[0].attn.num_heads,
        num_classes=0,
        dynamic_img_size=True,
    )
    renamed = {f"blocks.{old}.": f"blocks.{new}." for new, old in enumerate(blocks)}
    state = {}
    for key, value in teacher.state_dict().items():
        prefix = ".".join(key.split(".")[:2]) + "."
        if not key.startswith("blocks."):
            state[key] = value
        elif prefix in renamed:
            state[renamed[prefix] + key.removeprefix(prefix)] = value
    wanted = student.state_dict()
    student.load_state_dict({k: v.clone() for k, v in state.items() if k in wanted}, strict=True)
    return student


def patch_tokens(
    model: VisionTransformer, batch: Tensor, block: int, bf16: bool
) -> tuple[Tensor, Tensor]:
    """Return (final-norm tokens, tokens after `block`), float32 (B, N, C) of patches only."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=bf16):
        final, (middle,) = model.forward_intermediates(batch, indices=[block], output_fmt="NLC")
    return final[:, model.num_prefix_tokens :].float(), middle.float()


# --- training -----------------------------------------------------------------------------------


def channel_statistics(tokens: Tensor) -> Tensor:
    """Mean and standard deviation per channel of tokens (N, C), stacked to (2, C)."""
    return torch.stack([tokens.mean(0), tokens.std(0).clamp_min(1e-6)])


def standardised_error(student: Tensor, teacher: Tensor, statistics: Tensor) -> Tensor:
    """Smooth-L1 between tokens after both are standardised with the teacher's statistics (2, C)."""
    mean, std = statistics
    return F.smooth_l1_loss((student - mean) / std, (teacher - mean) / std)


def make_optimisers(
    model: VisionTransformer, config: DistillConfig
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else; decay for matrices and filters."""
    matrices, filters, others = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            matrices.append(parameter)
        elif name == "patch_embed.proj.weight":
            filters.append(parameter)
        else:
            others.append(parameter)
    decay = config.weight_decay
    groups = [
        {"params": filters, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # Muon's updates are scaled to the size of AdamW's in the long run; rates are set at each step.
    return {
        "muon": torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        "adamw": torch.optim.AdamW(groups, betas=(0.9, 0.98)),
    }


def schedule(knots: Sequence[Sequence[float]], step: int) -> float:
    """Factor of the peak learning rates at a step."""
    at, factors = zip(*knots, strict=True)
    return float(np.interp(step, at, factors))


def csv_text(rows: Sequence[dict[str, Any]], header: bool = False) -> str:
    """Format rows of the log."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, LOG_FIELDS)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


class Distillation:
    """One resumable run in `run_dir`: `checkpoint.pt`, `loss.csv`, `student.fp16.safetensors`."""

    def __init__(
        self,
        config: DistillConfig,
        teacher: VisionTransformer,
        images: Sequence[Image.Image],
        run_dir: Path,
    ) -> None:
        self.config, self.teacher, self.images, self.run_dir = config, teacher, images, run_dir
        self.patch = teacher.patch_embed.patch_size[0]
        self.student = build_student(teacher, config.blocks).train()
        self.optimisers = make_optimisers(self.student, config)
        self.step = 0
        self.statistics: Tensor | None = None
        self.checkpoint_file, self.log_file = run_dir / "checkpoint.pt", run_dir / "loss.csv"
        run_dir.mkdir(parents=True, exist_ok=True)
        if self.checkpoint_file.exists():
            self._resume()

    def _settings(self) -> str:
        return json.dumps(dataclasses.asdict(self.config), sort_keys=True)

    def _check_settings(self, saved: dict[str, Any]) -> None:
        """Refuse other settings; learning rates may change for steps not yet done."""
        before, now = json.loads(saved["settings"]), json.loads(self._settings())
        old, new = before.pop("knots"), now.pop("knots")
        done = range(saved["step"])
        same_past = all(math.isclose(schedule(old, s), schedule(new, s)) for s in done)
        if before != now or not same_past:
            raise ValueError(
                f"{self.checkpoint_file} stands at step {saved['step']} of a run with "
                f"{saved['settings']}, this run has {self._settings()}; pass the same settings "
                "or another --run-dir"
            )

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint_file, weights_only=True)
        self._check_settings(saved)
        self.student.load_state_dict(saved["student"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(saved["optimisers"][name])
        self.step, self.statistics = saved["step"], saved["statistics"]
        # Steps after the checkpoint are done again, so their rows go.
        with self.log_file.open(newline="") as opened:
            rows = [row for row in csv.DictReader(opened) if int(row["step"]) < self.step]
        write_bytes(self.log_file, csv_text(rows, header=True).encode())
        log.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Write checkpoint and exported weights, each whole or not at all."""
        state = {
            "settings": self._settings(),
            "step": self.step,
            "student": self.student.state_dict(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "statistics": self.statistics,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.checkpoint_file, buffer.getvalue())
        note = {"settings": self._settings(), "step": str(self.step)}
        half = {name: value.detach().half() for name, value in self.student.state_dict().items()}
        write_safetensors(self.run_dir / "student.fp16.safetensors", half, note)

    def _teacher_tokens(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return patch_tokens(self.teacher, batch, self.config.middle[1], self.config.bf16)

    def _measure_statistics(self) -> Tensor:
        """Per-channel statistics (2, 2, C) of final and middle teacher tokens over four batches."""
        beyond = 2**32  # steps that no run reaches
        batches = [make_batch(self.images, self.config, beyond + i, self.patch) for i in range(4)]
        pairs = [self._teacher_tokens(batch) for batch in batches]
        kinds = zip(*pairs, strict=True)
        flat = [torch.cat([tokens.flatten(0, 1) for tokens in kind]) for kind in kinds]
        return torch.stack([channel_statistics(tokens) for tokens in flat])

    def train_step(self) -> dict[str, Any]:
        """Do one optimiser step and return its row of the log."""
        begin, config = time.perf_counter(), self.config
        if self.statistics is None:
            self.statistics = self._measure_statistics()
        factor = schedule(config.knots, self.step)
        for name, peak in (("muon", config.muon_lr), ("adamw", config.lr)):
            for group in self.optimisers[name].param_groups:
                group["lr"] = peak * factor
        batch = make_batch(self.images, config, self.step, self.patch)
        target, target_middle = self._teacher_tokens(batch)
        output, output_middle = patch_tokens(self.student, batch, config.middle[0], config.bf16)
        cosine = 1 - F.cosine_similarity(output, target, dim=-1).mean()
        tokens = standardised_error(output, target, self.statistics[0])
        middle = standardised_error(output_middle, target_middle, self.statistics[1])
        loss = cosine + tokens + config.middle[2] * middle
        self.student.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        for optimiser in self.optimisers.values():
            optimiser.step()
        terms = {"loss": loss, "cosine": cosine, "tokens": tokens, "middle": middle}
        return {
            "step": self.step,
            "height": batch.shape[2],
            "width": batch.shape[3],
            "lr": f"{config.lr * factor:.6g}",
            **{name: f"{term.item():.6f}" for name, term in terms.items()},
            "seconds": f"{time.perf_counter() - begin:.3f}",
        }

    def run(self, until: int | None = None, checkpoint_every: int = 100) -> None:
        """Train up to step `until` (default: the configured end) with checkpoints on the way."""
        until = self.config.steps if until is None else min(until, self.config.steps)
        if not self.log_file.exists():
            write_bytes(self.log_file, csv_text([], header=True).encode())
        while self.step < until:
            row = self.train_step()
            with self.log_file.open("a", newline="") as log_stream:
                log_stream.write(csv_text([row]))
            self.step += 1
            if self.step % checkpoint_every == 0 or self.step == until:
                self.save()
                log.info("step %d of %d: %s", self.step, self.config.steps, row)


def parse_knots(text: str) -> tuple[tuple[int, float], ...]:
    """Read ``0:0.01,80:1,1800:0`` as ((0, 0.01), (80, 1.0), (1800, 0.0)); steps must rise."""
    knots = tuple((int(s), float(f)) for s, f in (pair.split(":") for pair in text.split(",")))
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(knots)):
        raise ValueError(f"steps of the knots must rise, got {text}")
    return knots


def main(
    data: Annotated[Path, typer.Option(help="Folder with camvid, msrc, imagenet_sample, ...")],
    teacher: Annotated[Path, typer.Option(help="Weights of the teacher, safetensors.")],
    run_dir: Annotated[Path, typer.Option(help="For checkpoint, log, weights; resumes if there.")],
    knots: Annotated[
        str, typer.Option(help="step:factor,... of the rates.")
    ] = "0:0.01,80:1,1200:1,1800:0",
    until: Annotated[
        int | None, typer.Option(help="Stop early here; a later call goes on.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    bf16: Annotated[bool, typer.Option(help="bfloat16 autocast.")] = True,
) -> None:
    """Distil the compact encoder, or go on with a run that was stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    config = DistillConfig(seed=seed, knots=parse_knots(knots), bf16=bf16)
    files = training_files(data)
    log.info("%d training images, %s", len(files), config)
    run = Distillation(config, load_teacher(teacher), load_images(files), run_dir)
    run.run(until, checkpoint_every)


if __name__ == "__main__":
    typer.run(main)
