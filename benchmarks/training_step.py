"""Training steps of the recipes: images/s and peak memory, beside the same step on plain modules.

    python benchmarks/training_step.py --out benchmarks/results/training.json [RECIPE…]

Each step is the recipe's own: its objective, backbone, batch and sizes, on random images, in
float32. The plain step puts the implementation of ``plain.py`` (``torch.nn.MultiheadAttention``,
whole maps) in the upsampler's place, with the same weights, and computes losses on whole maps too.
Both are timed in one process; memory is the growth of the peak in a process of its own. Results are
recycled as ``upfeat train`` does it (``upfeat.ops.runtime.recycled_memory``).
"""

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from plain import PLAIN, PlainModule
from torch import Tensor, nn

from upfeat.backbones import create_backbone
from upfeat.evaluation.benchmark import (
    BenchmarkRun,
    Environment,
    Measurement,
    measure_memory,
    measure_time,
)
from upfeat.objectives import losses
from upfeat.ops.runtime import recycled_memory
from upfeat.training import TrainConfig, build_upsampler, create_recipe, make_optimizer

RECIPES = ("jafar_paper", "loftup_stage1_paper", "anyup_paper", "naf_paper", "bundled_universal")
MASKS = 8


def training_step(recipe: str, plain: bool) -> Callable[[], float]:
    """Return one optimiser step of a recipe on random images and masks; it returns its loss."""
    config = create_recipe(recipe)
    torch.manual_seed(0)
    backbones = [
        create_backbone(one.name, weights="random", **one.options) for one in config.backbones[:1]
    ]
    settings = config.upsampler.model_copy(update={"start_from": None})
    model: nn.Module = build_upsampler(settings, backbones).train()
    if plain:
        model = PlainModule(model)
    objective = config.objective.build()
    objective.prepare(model, backbones, config.data.crop_size)
    optimizer = make_optimizer(config.optimizer, list(model.parameters()))
    batch = random_batch(config)
    whole = mock.patch.object(losses, "CACHE_BYTES", sys.maxsize)

    def step() -> float:
        generator = torch.Generator().manual_seed(0)
        with whole if plain else contextlib.nullcontext():
            loss = objective.step(batch, backbones, model, generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def random_batch(config: TrainConfig) -> dict[str, Tensor]:
    """Return images in [0, 1] and as many rectangular masks as a step may meet."""
    (height, width), count = config.data.crop_size, config.batch_size
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, MASKS, height, width, dtype=torch.bool)
    for number in range(MASKS):
        start = height * number // MASKS
        masks[:, number, start : start + height // MASKS] = True
    return {"image": torch.rand(count, 3, height, width, generator=generator), "masks": masks}


def _peak(recipe: str, plain: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    step = training_step(recipe, plain)
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))
    with recycled_memory():
        return measure_memory(step)


def measure(recipe: str, plain: bool, arguments: argparse.Namespace) -> Measurement:
    """Measure one recipe on one implementation."""
    step = training_step(recipe, plain)
    with recycled_memory():
        cost = measure_time(step, repeats=arguments.repeats, max_seconds=arguments.max_seconds)
    del step
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(_peak, (recipe, plain, arguments.threads))
    return Measurement(
        method=recipe,
        case="training step",
        implementation="plain" if plain else "upfeat",
        seconds=list(cost.seconds),
        peak_bytes=peak,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the recipes and write and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--no-plain", action="store_true", help="ours alone: plain LoftUp does not fit 24 GB"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-seconds", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    settings: dict[str, Any] = {"repeats": arguments.repeats, "rival": "plain.py"}
    environment = Environment.here(torch.float32, torch.device("cpu"))
    records: list[Measurement] = []
    for recipe in arguments.recipes:
        batch = create_recipe(recipe).batch_size
        for plain in (False, True):
            known = create_recipe(recipe).upsampler.name in PLAIN
            if plain and (arguments.no_plain or not known):
                continue
            records.append(measure(recipe, plain, arguments))
            report = BenchmarkRun(environment=environment, settings=settings, records=records)
            report.save(arguments.out)
            seconds = records[-1].median_seconds or float("nan")
            sys.stdout.write(
                f"{recipe:<22} {records[-1].implementation:<7} {seconds:6.2f} s a step "
                f"{batch / seconds:5.2f} images/s {records[-1].peak_bytes / 1e9:5.2f} GB\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
