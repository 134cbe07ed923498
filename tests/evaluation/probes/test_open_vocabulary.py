"""Words, windows and attention of open-vocabulary segmentation against the original codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.backbones import create_backbone
from upfeat.errors import UnknownNameError
from upfeat.evaluation.probes import open_vocabulary as module
from upfeat.evaluation.probes.open_vocabulary import (
    class_words,
    denoise_words,
    proxy_attention,
    read_words,
    slide,
    smooth_by_keys,
    window_places,
)
from upfeat.evaluation.probes.radseg import (
    RadSegFeatures,
    certain_classes,
    radseg_size,
    self_correlating_attention,
)
from upfeat.similarity.maps import (
    CLIP_SCALE,
    average_prompts,
    classes_of_words,
    cosine_maps,
    embed_words,
    templates,
    word_classes,
)


@pytest.mark.golden
def test_prompts_and_cosines(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2/clip_similarity.safetensors")
    raw = golden["text_raw"]
    text = average_prompts(raw)
    assert max_abs_difference(text, golden["class_embeddings"]) <= GOLDEN_ATOL
    mean_first = average_prompts(raw, "mean")
    assert max_abs_difference(mean_first, golden["class_embeddings_mean_first"]) <= GOLDEN_ATOL
    features = golden["patch_features"].mT.reshape(2, 12, 4, 4)
    maps = cosine_maps(features, text)
    assert max_abs_difference(maps, golden["similarity"]) <= GOLDEN_ATOL


@pytest.mark.golden
def test_refinement(golden_dir: Path) -> None:
    golden, _ = load_golden(golden_dir / "metrics2/maskclip_refine.safetensors")
    logits, keys = golden["logits"], golden["keys"]
    assert max_abs_difference(denoise_words(logits, 0.5), golden["denoised"]) <= GOLDEN_ATOL
    smoothed = smooth_by_keys(logits, keys, 0.9)
    assert max_abs_difference(smoothed, golden["smoothed"]) <= GOLDEN_ATOL
    both = smooth_by_keys(denoise_words(logits, 0.5), keys, 0.9)
    assert max_abs_difference(both, golden["both"]) <= GOLDEN_ATOL


def _attended(golden: dict[str, torch.Tensor]) -> torch.Tensor:
    values = F.linear(golden["tokens_after_ln1"], *_value_part(golden))[1:]  # (h*w, B, D)
    mixed = proxy_attention(golden["proxy_feats"], values.permute(1, 2, 0).reshape(1, 24, 3, 4))
    tokens = mixed.flatten(2).permute(2, 0, 1)  # (B, D, H, W) -> (H*W, B, D)
    return F.linear(tokens, golden["out_proj_weight"], golden["out_proj_bias"])


def _value_part(golden: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return golden["in_proj_weight"][48:], golden["in_proj_bias"][48:]


@pytest.mark.golden
@pytest.mark.parametrize("chunk_bytes", [2**20, 48 * 4 * 5])
def test_proxy_attention_whole_and_in_blocks(
    golden_dir: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    golden, _ = load_golden(golden_dir / "metrics/proxy_attention.safetensors")
    monkeypatch.setattr(module, "STRIP_BYTES", chunk_bytes)
    assert max_abs_difference(_attended(golden), golden["out"]) <= GOLDEN_ATOL


def test_a_cell_without_a_similar_one_takes_its_own_values() -> None:
    proxy = torch.ones(1, 3, 2, 2)  # all alike: the mean similarity is 1
    values = torch.randn(1, 5, 2, 2)
    torch.testing.assert_close(proxy_attention(proxy, values), values, **tolerance(torch.float32))


@pytest.mark.golden
@pytest.mark.parametrize("chunk_bytes", [2**20, 30 * 4 * 7])
def test_radseg(golden_dir: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(module, "STRIP_BYTES", chunk_bytes)
    golden, _ = load_golden(golden_dir / "metrics2/radseg_attention.safetensors")
    qkv, projection = torch.nn.Linear(24, 72), torch.nn.Linear(24, 24)
    for layer, name in ((qkv, "qkv"), (projection, "proj")):
        weights = {part: golden[f"{name}_{part}"] for part in ("weight", "bias")}
        layer.load_state_dict(weights)
    with torch.no_grad():
        out = self_correlating_attention(golden["tokens"], qkv, projection, heads=3)
    assert max_abs_difference(out, golden["attention_out"]) <= GOLDEN_ATOL
    features = golden["feature_map"]
    aggregated = proxy_attention(features, features, beta=1.0, gamma=10.0)
    assert max_abs_difference(aggregated, golden["aggregated"]) <= GOLDEN_ATOL
    logits = CLIP_SCALE * cosine_maps(aggregated, F.normalize(golden["text"], dim=1))
    assert max_abs_difference(logits.softmax(1), golden["probabilities"]) <= GOLDEN_ATOL


def test_radsegs_features_of_one_window_and_of_several() -> None:
    """The last block is RADIO's own again after each call; two windows overlap in two columns."""
    torch.manual_seed(0)
    network = {"dim": 24, "depth": 2, "heads": 3, "side": 8, "prefix": 2}
    radio = create_backbone("radio/c-radio_v3-b", weights="random", network=network)
    features = RadSegFeatures(radio, window=64, stride=32)
    assert (features.dim, features.patch_size) == (24, 16)
    image = torch.randn(1, 3, 64, 96)
    before = radio(image)
    found = features(image)
    assert torch.equal(radio(image), before)
    block, tokens = radio.model.blocks[-1], []
    handle = block.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    for start in (0, 32):
        radio(image[..., start : start + 64])
    handle.remove()
    windows = []
    for each in tokens:
        attended = self_correlating_attention(
            block.norm1(each), block.attn.qkv, block.attn.proj, heads=3
        )
        out = each + attended
        out = out + block.mlp(block.norm2(out))
        windows.append(out[:, 2:].mT.reshape(1, 24, 4, 4))
    left, right = windows
    middle = (left[..., 2:] + right[..., :2]) / 2
    stitched = torch.cat([left[..., :2], middle, right[..., 2:]], dim=3)
    expected = proxy_attention(stitched, stitched, beta=1.0, gamma=10.0)
    torch.testing.assert_close(found, expected, **tolerance(torch.float32))
    with pytest.raises(ValueError, match=r"multiples of 16, got window=64 and stride=24"):
        RadSegFeatures(radio, window=64, stride=24)


def test_radsegs_sizes_and_classes() -> None:
    sizes = [(448, 448), (336, 448), (300, 224), (336, 1000), (224, 224)]
    found = [radseg_size(size, 336, 224) for size in sizes]
    assert found == [(448, 448), (448, 448), (448, 448), (448, 1120), (224, 224)]
    probabilities = torch.tensor([[0.3, 0.3], [0.1, 0.6], [0.6, 0.1]])[:, None]
    assert certain_classes(probabilities, 0.5).tolist() == [[2, 1]]
    assert certain_classes(probabilities[:2], 0.7).tolist() == [[0, 0]]
    assert certain_classes(probabilities, 0.0, threshold=0.7).tolist() == [[0, 0]]


@pytest.mark.golden
@pytest.mark.parametrize(
    ("key", "window", "stride", "size"),
    [("a", 64, 24, (47, 66)), ("b", 112, 40, (47, 66)), ("small", 64, 24, (50, 70))],
)
def test_windows(
    golden_dir: Path, key: str, window: int, stride: int, size: tuple[int, int]
) -> None:
    golden, _ = load_golden(golden_dir / "metrics2/proxyclip_windows.safetensors")
    image = golden["image"] if key != "small" else golden["image"][..., :50, :70]

    def toy(part: torch.Tensor) -> torch.Tensor:
        cells = F.avg_pool2d(part, 8)
        logits = torch.einsum("kc,bchw->bkhw", golden["weight"], cells)
        logits = (logits + golden["bias"][:, None, None]) / 10
        return F.interpolate(logits, part.shape[-2:], mode="bilinear")

    logits = slide(image, toy, window=window, stride=stride, multiple=56)
    logits = F.interpolate(logits, size, mode="bilinear")
    assert max_abs_difference(logits, golden[f"logits_{key}"]) <= GOLDEN_ATOL
    if key == "small":
        return
    for threshold, name in ((0.0, "0"), (0.35, "35")):
        found = classes_of_words(logits, golden["word_class"], scale=40, threshold=threshold)
        assert torch.equal(found, golden[f"pred_{key}_{name}"])


def test_padded_pixels_have_the_given_value() -> None:
    seen: list[torch.Tensor] = []
    image = torch.zeros(1, 3, 4, 5)

    def look(part: torch.Tensor) -> torch.Tensor:
        seen.append(part)
        return part

    slide(image, look, window=5, stride=5, multiple=8, padding=torch.tensor([1.0, 2.0, 3.0]))
    (part,) = seen
    assert part.shape == (1, 3, 8, 8)
    assert part[0, :, 0, 0].tolist() == [1, 2, 3]
    assert part[0, :, 2:6, 1:6].abs().sum() == 0
    with pytest.raises(ValueError, match="from 1 to the window, 4, got 5"):
        list(window_places((8, 8), 4, 5))


def test_words_of_classes() -> None:
    assert len(templates("maskclip")) == 85
    for source, data, classes in (
        ("maskclip", "voc", 21),
        ("maskclip", "ade20k", 150),
        ("proxyclip", "cityscapes", 19),
        ("proxyclip", "coco_stuff_171", 171),
        ("proxyclip", "voc", 21),
        ("proxyclip", "coco_object", 81),
        ("proxyclip", "context_60", 60),
    ):
        assert len(class_words(source, data)) == classes
    assert len(class_words("proxyclip", "voc")[0]) == 26
    with pytest.raises(UnknownNameError, match="unknown data set 'voce'; did you mean 'voc'"):
        class_words("maskclip", "voce")
    assert word_classes([2, 1]).tolist() == [0, 0, 1]


def test_an_empty_class_in_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("sky, cloud\n\ncar\n")
    with pytest.raises(ValueError, match=r"words\.txt, line 2: class 1 has an empty word; write"):
        read_words(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty; write a class a line"):
        read_words(path)
    with pytest.raises(FileNotFoundError, match="no list of words"):
        read_words(tmp_path / "none.txt")


def test_embeddings_are_kept(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.tensor([[float(len(text)), float(text.count("a")), 1.0] for text in texts])

    prompts = templates("clip")
    first = embed_words(encode, ["cat", "dog"], prompts, cache=tmp_path, encoder="one")
    passes = len(calls)
    again = embed_words(encode, ["cat", "dog"], prompts, cache=tmp_path, encoder="one")
    assert torch.equal(first, again)
    assert len(calls) == passes == 3  # 160 prompts, 64 at once
    expected = average_prompts(encode([p.format("dog") for p in prompts])[None])
    torch.testing.assert_close(first[1:], expected)
    embed_words(encode, ["cat", "dog"], prompts, cache=tmp_path, encoder="two")
    assert len(calls) == 2 * passes + 1
