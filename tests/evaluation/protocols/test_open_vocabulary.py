"""Segmentation by words, on a tiny random CLIP: mechanics, not numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import upfeat
from tests.backbones.test_radio_backbone import WITH_ADAPTORS
from tests.evaluation.protocols.test_seg_probe import method, root
from tests.tolerances import tolerance
from upfeat.backbones.clip_backbone import ClipBackbone
from upfeat.cli.app import app
from upfeat.data import msrc
from upfeat.data.transforms import resize_and_crop
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import LowRes, Method, load_methods
from upfeat.evaluation.metrics import SegmentationMetric
from upfeat.evaluation.probes import word_runs
from upfeat.evaluation.probes.maskclip import MaskClipRun
from upfeat.evaluation.probes.open_vocabulary import window_places
from upfeat.evaluation.probes.proxyclip import ProxyClipRun
from upfeat.evaluation.probes.radseg import RadSegFeatures, radseg_size
from upfeat.evaluation.probes.talk2dino import TextProjection
from upfeat.evaluation.protocols import open_vocabulary as module
from upfeat.evaluation.protocols.open_vocabulary import (
    open_vocabulary_preset,
    run_open_vocabulary,
    without_background,
)
from upfeat.evaluation.results import Result
from upfeat.similarity.maps import cosine_maps, templates

pytest.importorskip("ftfy")  # comes with open_clip

__all__ = ["root"]  # a fixture
TINY = (
    "clip/ViT-B-16.openai(weights='random', vision={'layers': 2, 'width': 64}, "
    "text={'layers': 1, 'width': 32, 'heads': 2, 'context_length': 20})"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests, so that the prompts are encoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clip() -> ClipBackbone:
    torch.manual_seed(0)
    backbone = upfeat.create_backbone(TINY)
    assert isinstance(backbone, ClipBackbone)
    return backbone


def run(
    root: Path,
    cache: Path,
    backbone: upfeat.Backbone,
    methods: list[Method],
    *,
    clip: Any = None,
    projection: Any = None,
    **changes: Any,
) -> list[Result]:
    preset = changes.pop("preset", "maskclip")
    small = {"crop_size": 48} if preset == "maskclip" else {"short_side": 112, "window": 112}
    config = open_vocabulary_preset(preset, "msrc", **{"words": "names", **small, **changes})
    folders = {"out": root.parent / "out", "cache": cache}
    return run_open_vocabulary(
        config, msrc(root, "val"), backbone, methods, clip=clip, projection=projection, **folders
    )


def test_the_nearest_word_of_the_upsampled_map(root: Path, cache: Path, clip: ClipBackbone) -> None:
    """Of a plain computation: the whole map first, then cosines with every prompt's mean."""
    (result,) = run(root, cache, clip, [method("bilinear")], templates="clip")
    data = msrc(root, "val")
    prompts = [[p.format(name) for p in templates("clip")] for name in data.classes]
    text = torch.stack([F.normalize(clip.encode_text(p), dim=-1).mean(0) for p in prompts])
    metric = SegmentationMetric(len(data.classes), data.ignore_index)
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.image_mean, clip.image_std))
    for file in data.files:
        image, label = resize_and_crop(*data.read(file), 48)
        features = clip(((image - mean) / std)[None]).half().float()  # what the cache keeps
        high = F.interpolate(features, (48, 48), mode="bilinear")
        metric.add(cosine_maps(high, F.normalize(text, dim=-1)).argmax(1)[0], label)
    for name, value in metric.compute().items():
        assert result.scores[name].mean == pytest.approx(100 * value, abs=0.2)


def test_the_head_goes_first_only_where_that_is_the_same(
    root: Path, cache: Path, clip: ClipBackbone
) -> None:
    before, after = method("bilinear"), method("bilinear", head_first=False)
    first, last = (run(root, cache, clip, [each])[0] for each in (before, after))
    assert first.scores["accuracy"].mean == pytest.approx(last.scores["accuracy"].mean, abs=0.2)


def test_rows_of_the_table(root: Path, cache: Path, clip: ClipBackbone) -> None:
    methods = load_methods("low-res, bilinear, large:2", clip)
    jafar = upfeat.create_upsampler("jafar", feature_dim=512, qk_dim=8)
    results = run(root, cache, clip, [*methods, Method("jafar", jafar)])
    assert [result.label for result in results] == ["low-res", "bilinear", "large:2", "jafar"]
    assert all(0 <= result.scores["miou"].mean <= 100 for result in results)
    assert len(results[0].settings["words"]) == 23
    again = run(root, cache, clip, methods)  # read
    assert [r.scores for r in again] == [r.scores for r in results[:3]]


def test_an_interrupted_run_goes_on(
    root: Path, cache: Path, clip: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_runs, "SAVE_EVERY", 1)
    seen: list[int] = []
    predict = MaskClipRun.predict

    def interrupted(self: Any, *arguments: Any) -> torch.Tensor:
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(1)
        return predict(self, *arguments)

    monkeypatch.setattr(MaskClipRun, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(root, cache, clip, [method("bilinear")])
    seen.clear()
    (resumed,) = run(root, cache, clip, [method("bilinear")])
    assert len(seen) == 1  # of two images
    assert not list((cache / "open-vocabulary").iterdir())
    monkeypatch.undo()
    (whole,) = run(root, cache, clip, [Method("other", upfeat.create_upsampler("bilinear"))])
    assert resumed.scores == whole.scores


def test_maskclips_refinements(root: Path, cache: Path, clip: ClipBackbone) -> None:
    options = {"prompt_denoising": 0.5, "key_smoothing": 0.9}
    (refined,) = run(root, cache, clip, [method("nearest")], **options)
    assert refined.settings["key_smoothing"] == 0.9
    with pytest.raises(ValueError, match="which bilinear cannot do"):
        run(root, cache, clip, [method("bilinear", head_first=False)], **options)


def test_background(root: Path, cache: Path, clip: ClipBackbone) -> None:
    voc = module.PRESETS["maskclip"]["voc"]
    assert voc == {"background": "ignore"}
    data = msrc(root, "val")
    named = dataclasses.replace(data, classes=("background", *data.classes[1:]))
    moved = without_background(named)
    label, shifted = named.read(named.files[0]).label, moved.read(moved.files[0]).label
    inside = (label != 0) & (label != 255)
    assert torch.equal(shifted[inside], label[inside] - 1)
    assert (shifted[~inside] == 255).all()
    folders = {"out": root.parent / "out", "cache": cache}
    scores = {}
    for background, threshold in (("word", 0.0), ("ignore", 0.0), ("threshold", 0.999)):
        config = open_vocabulary_preset(
            "maskclip", "msrc", words="names", crop_size=48,
            background=background, threshold=threshold,
        )  # fmt: skip
        (result,) = run_open_vocabulary(config, named, clip, [method("nearest")], **folders)
        scores[background] = result
    assert [len(r.settings["words"]) for r in scores.values()] == [23, 22, 23]
    assert scores["threshold"].settings["words"][0] == []
    ious = scores["threshold"].details["iou_per_class"]
    # A random CLIP is sure of nothing: everything is background.
    assert [name for name, value in ious.items() if value] == ["background"]
    with pytest.raises(ValueError, match="has no background: its class 0 is"):
        run(root, cache, clip, [method("nearest")], background="word")
    with pytest.raises(ValueError, match=r"threshold=0\.5 needs background=threshold, got None"):
        run(root, cache, clip, [method("nearest")], threshold=0.5)


def test_proxyclip(root: Path, cache: Path, clip: ClipBackbone) -> None:
    proxy = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    methods = [LowRes(), method("bilinear"), method("nearest")]
    options = {"preset": "proxyclip", "clip": clip, "factor": 2, "stride": 56}
    low, linear, near = run(root, cache, proxy, methods, **options)
    assert low.settings["window_multiple"] == 112
    assert low.settings["backbone"]["name"] == "timm/vit_tiny_patch16_224"
    assert low.settings["clip"]["name"] == clip.name
    assert linear.scores["accuracy"].mean >= 0
    assert near.scores.keys() == {"miou", "miou_labelled", "accuracy"}


def test_a_window_of_proxyclip(root: Path, cache: Path, clip: ClipBackbone) -> None:
    """Of one formed N x N matrix, on CLIP's own tokens before the last block."""
    proxy = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    config = open_vocabulary_preset("proxyclip", "msrc", words="names", factor=1)
    words = module.words_of(config, msrc(root, "val"))
    data = msrc(root, "val")
    one = ProxyClipRun(config, root, module.silent, data, clip, words, cache, proxy)
    window = torch.rand(1, 3, 112, 112)
    logits = one.logits(method("bilinear"), window)
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.image_mean, clip.image_std))
    block = clip.tower.transformer.resblocks[-1]
    tokens = block.ln_1(clip.penultimate((window - mean) / std))[:, 1:]
    values = F.linear(tokens, block.attn.in_proj_weight[128:], block.attn.in_proj_bias[128:])
    vectors = F.normalize(proxy(window / 0.5 - 1).half().float().flatten(2).mT, dim=-1)
    similar = vectors @ vectors.mT
    weights = (similar - 1.2 * similar.mean()) * 3
    weights = weights.masked_fill(weights < 0, -torch.inf).softmax(-1)
    out = clip.finish(block.attn.out_proj(weights @ values))
    cosine = (F.normalize(out, dim=-1) @ one.text.T).mT.reshape(1, -1, 7, 7)
    expected = F.interpolate(cosine, (112, 112), mode="bilinear")
    torch.testing.assert_close(logits, expected, **tolerance(torch.float32))


@pytest.fixture
def radio(tmp_path: Path) -> upfeat.Backbone:
    folder = tmp_path / "radio"
    folder.mkdir()
    (folder / "hubconf.py").write_text(WITH_ADAPTORS)
    return upfeat.create_backbone("radio/c-radio_v3-b", repository=folder, adaptor="siglip2")


def test_radseg(root: Path, cache: Path, radio: Any) -> None:
    """The bilinear row, of a plain computation of whole maps."""
    options = {"preset": "radseg", "short_side": 48, "window": 48, "stride": 32, "factor": 2}
    options |= {"prompt_denoising": 0.0}
    low, linear = run(root, cache, radio, [LowRes(), method("bilinear")], **options)
    assert low.settings["backbone"]["name"].endswith("+radseg48-32")
    data = msrc(root, "val")
    prompts = [[p.format(name) for p in templates("clip")] for name in data.classes]
    texts = [F.normalize(radio.language.encode_text(each), dim=1).mean(0) for each in prompts]
    text = F.normalize(torch.stack(texts), dim=1)
    features = RadSegFeatures(radio, window=48, stride=32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (radio.image_mean, radio.image_std))
    metric = SegmentationMetric(len(data.classes), data.ignore_index)
    for file in data.files:
        image, label = data.read(file)
        image = word_runs.resized(image, 48, 2048)
        size = radseg_size((image.shape[1], image.shape[2]), 48, 32)
        resized = F.interpolate(image[None], size, mode="bilinear").clamp(0, 1)
        coarse = features((resized - mean) / std).half().float()
        high = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        found = (100 * cosine_maps(radio.language(high), text)).softmax(1)
        found = F.interpolate(found, label.shape, mode="bilinear")
        metric.add(found.argmax(1)[0], label)
    for name, value in metric.compute().items():
        assert linear.scores[name].mean == pytest.approx(100 * value, abs=0.2)
    with pytest.raises(UnsupportedError, match=r"from RADIO's adaptor, not from clip/ViT-B-16"):
        run(root, cache, radio, [LowRes()], clip=upfeat.create_backbone(TINY), **options)


def test_talk2dino(root: Path, cache: Path, clip: ClipBackbone) -> None:
    """The bilinear row, of a plain computation with the means of raw embeddings."""
    proxy = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    torch.manual_seed(0)
    projection = TextProjection(512, 192)
    sizes = {"short_side": 48, "window": 48, "stride": 32, "factor": 2}
    options: dict[str, Any] = {"preset": "talk2dino", "clip": clip} | sizes
    low, linear = run(
        root, cache, proxy, [LowRes(), method("bilinear")], projection=projection, **options
    )
    assert low.settings["clip"]["name"] == f"{clip.name}, projected"
    data = msrc(root, "val")
    prompts = [[p.format(name) for p in templates("talk2dino")] for name in data.classes]
    text = projection(torch.stack([clip.encode_text(each) for each in prompts]))
    mean, std = (torch.tensor(v)[:, None, None] for v in (proxy.image_mean, proxy.image_std))
    metric = SegmentationMetric(len(data.classes), data.ignore_index)
    for file in data.files:
        image, label = data.read(file)
        image = word_runs.resized(image, 48, 2048)
        total = torch.zeros(1, len(text), *image.shape[1:])
        count = torch.zeros(image.shape[1:])
        for rows, columns in window_places((image.shape[1], image.shape[2]), 48, 32):
            window = image[None, :, rows, columns]
            features = proxy((window - mean) / std).half().float()
            high = F.interpolate(features, scale_factor=2, mode="bilinear")
            masks = torch.sigmoid(cosine_maps(high, text))
            masks = F.interpolate(masks, (48, 48), mode="bilinear", align_corners=True)
            total[..., rows, columns] += masks
            count[rows, columns] += 1
        found = F.interpolate(total / count, label.shape, mode="bilinear")
        metric.add(found.argmax(1)[0], label)
    for name, value in metric.compute().items():
        assert linear.scores[name].mean == pytest.approx(100 * value, abs=0.2)
    with pytest.raises(ValueError, match=r"preset talk2dino needs .*: --projection FILE"):
        run(root, cache, proxy, [LowRes()], **options)
    other = TextProjection(512, 64)
    with pytest.raises(ValueError, match=r"from 512 to 64 channels; .* 192: give the file"):
        run(root, cache, proxy, [LowRes()], projection=other, **options)


def test_a_background_without_words_takes_what_fits_none(
    root: Path, cache: Path, clip: ClipBackbone
) -> None:
    """All sigmoids are below 0.74."""
    proxy = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    data = msrc(root, "val")
    named = dataclasses.replace(data, classes=("background", *data.classes[1:]))
    changes = {"words": "names", "short_side": 48, "window": 48, "stride": 32, "factor": 1}
    config = open_vocabulary_preset(
        "talk2dino", "msrc", background="threshold", threshold=0.75, **changes
    )
    folders = {"out": root.parent / "out", "cache": cache}
    (result,) = run_open_vocabulary(
        config, named, proxy, [LowRes()], clip=clip, projection=TextProjection(512, 192), **folders
    )
    assert result.settings["words"][0] == []
    ious = result.details["iou_per_class"]
    assert [name for name, value in ious.items() if value] == ["background"]


def test_bad_input_is_one_clear_sentence(
    root: Path, cache: Path, clip: ClipBackbone, tmp_path: Path
) -> None:
    classifier = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    with pytest.raises(UnsupportedError, match=r"no text space; .*jafar_maskclip_paper"):
        run(root, cache, classifier, [method("bilinear")])
    file = tmp_path / "words.txt"
    file.write_text("\n".join(["word"] * 5 + [""] + ["word"] * 17) + "\n")
    with pytest.raises(ValueError, match=r"words\.txt, line 6: class 5 has an empty word"):
        run(root, cache, clip, [method("bilinear")], words=str(file))
    file.write_text("sky\ncar\n")
    with pytest.raises(ValueError, match=r"words for 2 classes, msrc/val has 23: "):
        run(root, cache, clip, [method("bilinear")], words=str(file))
    with pytest.raises(UnsupportedError, match=r"no adaptor for words; .*adaptor='siglip2'"):
        run(root, cache, classifier, [method("bilinear")], preset="radseg", stride=112)
    with pytest.raises(UnknownNameError, match="unknown data set 'msrc'"):
        open_vocabulary_preset("maskclip", "msrc")
    with pytest.raises(UnknownNameError, match="did you mean 'proxyclip'"):
        open_vocabulary_preset("proxclip", "voc")
    assert not (root.parent / "out").exists()


def test_command(root: Path, cache: Path) -> None:
    torch.manual_seed(0)
    line = ["eval", "open-vocabulary", "--data", "msrc", "--root", str(root), "--backbone", TINY]
    line += ["--upsampler", "low-res,bilinear", "--out", str(root.parent / "r"), "--limit", "1"]
    line += ["--cache", str(cache), "--set", "words=names", "--set", "crop_size=48"]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert "low-res" in outcome.stdout
    folder = ["folder" if part == "msrc" else part for part in line]
    (root / "classes.txt").write_text("sky\ngrass\ncar\n")
    del folder[folder.index("words=names") - 1 : folder.index("words=names") + 1]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, folder)
    assert outcome.exit_code == 0, outcome.output
    (found,) = {
        str(Result.load(path).settings["words"])
        for path in (root.parent / "r").glob("open-vocabulary--set--*.json")
    }
    assert found == "[['sky'], ['grass'], ['car']]"
    other = {TINY: "upfeat/vit_compact_patch16", "crop_size=48": "short_side=112"}
    proxy = [other.get(part, part) for part in line]
    more = ["--preset", "proxyclip", "--clip", TINY, "--set", "window=112", "--set", "factor=2"]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, proxy + more)
    assert outcome.exit_code == 0, outcome.output
