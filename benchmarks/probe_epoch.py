"""One epoch of JAFAR's segmentation probe, heads in front of the upsampler and behind it.

    python benchmarks/probe_epoch.py --root MSRC --out benchmarks/results/probe_epoch.json

Three ways to the same scores, each in a process of its own: the papers' (the implementation of
``plain.py`` with whole maps and ``torch.nn.MultiheadAttention``, heads behind it), ours with heads
behind, ours with heads in front. The times are those of the upsampler and the heads alone, summed
over all training images and over all validation images; features are read from a cache. Memory is
the growth of the peak over the loaded models, both passes together.
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from plain import PlainModule

import upfeat
from upfeat.data import load_segmentation
from upfeat.evaluation.benchmark import BenchmarkRun, Environment, Measurement, measure_memory
from upfeat.evaluation.methods import Method
from upfeat.evaluation.probes.segmentation_crops import image_probe_preset
from upfeat.evaluation.protocols.seg_probe import run_seg_probe
from upfeat.evaluation.results import Result

WAYS = {
    "papers' code, heads behind": ("plain", "never"),
    "heads behind": ("upfeat", "never"),
    "heads in front": ("upfeat", "always"),
}


def _run(way: str, arguments: argparse.Namespace, cache: str) -> tuple[Result, int]:
    """Train and score one way; return its result and the growth of the peak."""
    torch.set_num_threads(arguments.threads)
    implementation, heads = WAYS[way]
    backbone = upfeat.create_backbone(arguments.backbone)
    upsampler = upfeat.create_upsampler(arguments.upsampler).eval()
    method = Method(way, upsampler)
    if implementation == "plain":
        method = Method(way, PlainModule(upsampler))  # type: ignore[arg-type]
    config = image_probe_preset(
        "jafar",
        arguments.data,
        epochs=1,
        limit=arguments.images,
        seeds=tuple(range(arguments.seeds)),
        head_before_upsampling=heads,
    )
    splits = [load_segmentation(arguments.data, arguments.root, name) for name in ("train", "val")]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as out:

        def epoch() -> None:
            results.extend(run_seg_probe(config, *splits, backbone, [method], out=out, cache=cache))

        peak = measure_memory(epoch)
    return results[0], peak


def _fill_cache(arguments: argparse.Namespace, cache: str) -> None:
    """Compute all low-resolution features, flipped or not, with a method that costs nothing."""
    torch.set_num_threads(arguments.threads)
    backbone = upfeat.create_backbone(arguments.backbone)
    method = Method("nearest", upfeat.create_upsampler("nearest"))
    config = image_probe_preset(
        "jafar", arguments.data, epochs=1, limit=arguments.images, seeds=(0,)
    )
    splits = [load_segmentation(arguments.data, arguments.root, name) for name in ("train", "val")]
    with tempfile.TemporaryDirectory() as out:
        run_seg_probe(config, *splits, backbone, [method], out=out, cache=cache)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the three ways, write and print what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="msrc")
    parser.add_argument("--images", type=int, default=20, help="of each split")
    parser.add_argument("--seeds", type=int, default=1, help="heads trained together")
    parser.add_argument("--backbone", default="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    parser.add_argument("--upsampler", default="jafar.vit_tiny_patch16_augreg")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    environment = Environment.here(torch.float32, torch.device("cpu"))
    settings = {k: str(v) for k, v in vars(arguments).items() if k not in ("out", "root")}
    records: list[Measurement] = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as cache:
        with spawn.Pool(1) as pool:
            pool.apply(_fill_cache, (arguments, cache))
        for way in WAYS:
            with spawn.Pool(1) as pool:
                result, peak = pool.apply(_run, (way, arguments, cache))
            for stage, seconds in result.seconds.items():
                records.append(
                    Measurement(
                        method=arguments.upsampler.partition(".")[0],
                        case=f"probe epoch, {stage}, {way}",
                        implementation=WAYS[way][0],  # type: ignore[arg-type]
                        seconds=[seconds],
                        peak_bytes=peak,
                    )
                )
            BenchmarkRun(environment=environment, settings=settings, records=records).save(
                arguments.out
            )
            sys.stdout.write(
                f"{way:<28} training {result.seconds['training']:6.1f} s, validation "
                f"{result.seconds['validation']:6.1f} s, {peak / 1e9:5.2f} GB, labelled mIoU "
                f"{result.scores['miou_labelled'].mean:.2f}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
