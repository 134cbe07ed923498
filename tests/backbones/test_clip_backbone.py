from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import upfeat
from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat._compat import ensure_torchvision_operators
from upfeat.backbones import create_backbone, list_backbones
from upfeat.backbones.clip_backbone import ClipBackbone, value_tokens
from upfeat.checkpoints import load_strictly
from upfeat.errors import CheckpointError, UnknownNameError, UnsupportedError
from upfeat.upsamplers.registry import get_checkpoint

ensure_torchvision_operators()  # open_clip imports torchvision
open_clip = pytest.importorskip("open_clip")

TINY: dict[str, Any] = {
    "weights": "random",
    "vision": {"layers": 2, "width": 64},
    "text": {"layers": 1, "width": 64, "heads": 2},
}


def tiny(spec: str = "clip/ViT-B-16.openai", **options: Any) -> ClipBackbone:
    torch.manual_seed(0)
    backbone = create_backbone(spec, **{**TINY, **options})
    assert isinstance(backbone, ClipBackbone)
    return backbone


# -- the original's numbers ------------------------------------------------------------------------


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, torch.Tensor]:
    return load_golden(golden_dir / "metrics2/clip_similarity.safetensors")[0]


def of_golden(golden: dict[str, torch.Tensor], quick_gelu: bool, **options: Any) -> ClipBackbone:
    """Returns OpenAI's tiny network as a backbone."""
    vision = {"layers": 2, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 32}
    text = {"context_length": 10, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    state = {key[2:]: value for key, value in golden.items() if key.startswith("w.")}
    load_strictly(model, state, origin="golden", name="tiny CLIP")
    return ClipBackbone(model, name="tiny CLIP", **options)


def tokens_of(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).mT  # (B, C, h, w) -> (B, h*w, C)


@pytest.mark.golden
def test_patch_tokens_in_the_text_space(golden: dict[str, torch.Tensor]) -> None:
    backbone = of_golden(golden, quick_gelu=True)
    for images, expected in (("images", "patch_features"), ("big", "patch_features_big")):
        features = tokens_of(backbone(golden[images]))
        assert max_abs_difference(features, golden[expected]) <= GOLDEN_ATOL
    token = backbone.class_token(golden["images"])
    assert max_abs_difference(token, golden["image_embedding"]) <= GOLDEN_ATOL


@pytest.mark.golden
def test_exact_gelu_is_another_network(golden: dict[str, torch.Tensor]) -> None:
    backbone = of_golden(golden, quick_gelu=False)
    features = tokens_of(backbone(golden["images"]))
    assert max_abs_difference(features, golden["patch_features_gelu"]) <= GOLDEN_ATOL
    token = backbone.class_token(golden["images"])
    assert max_abs_difference(token, golden["image_embedding_gelu"]) <= GOLDEN_ATOL


@pytest.mark.golden
def test_texts(golden: dict[str, torch.Tensor]) -> None:
    backbone = of_golden(golden, quick_gelu=True)
    raw = backbone.encode_tokens(golden["tokens"].flatten(0, 1))
    assert max_abs_difference(raw, golden["text_raw"].flatten(0, 1)) <= GOLDEN_ATOL


@pytest.mark.golden
def test_both_value_paths(golden_dir: Path) -> None:
    """The golden's MLP has exact GELU."""
    golden, _ = load_golden(golden_dir / "metrics/maskclip_value_path.safetensors")
    block = open_clip.transformer.ResidualAttentionBlock(16, 2, mlp_ratio=2.0)
    names = {
        "ln_1.weight": "ln1_weight",
        "ln_1.bias": "ln1_bias",
        "attn.in_proj_weight": "in_proj_weight",
        "attn.in_proj_bias": "in_proj_bias",
        "attn.out_proj.weight": "out_proj_weight",
        "attn.out_proj.bias": "out_proj_bias",
        "ln_2.weight": "ln2_weight",
        "ln_2.bias": "ln2_bias",
        "mlp.c_fc.weight": "mlp_fc_weight",
        "mlp.c_fc.bias": "mlp_fc_bias",
        "mlp.c_proj.weight": "mlp_proj_weight",
        "mlp.c_proj.bias": "mlp_proj_bias",
    }
    block.load_state_dict({ours: golden[theirs] for ours, theirs in names.items()})
    values = value_tokens(block, golden["tokens"])
    assert max_abs_difference(values, golden["value_out"]) <= GOLDEN_ATOL
    with_mlp = value_tokens(block, golden["tokens"], mlp=True)
    assert max_abs_difference(with_mlp, golden["value_out_residual_mlp"]) <= GOLDEN_ATOL
    normed = F.layer_norm(values, (16,), golden["ln_post_weight"], golden["ln_post_bias"])
    features = normed[:, 1:] @ golden["proj"]
    assert max_abs_difference(features, golden["patch_features"]) <= GOLDEN_ATOL
    cosine = F.normalize(features, dim=-1) @ F.normalize(golden["text"], dim=-1).T
    assert max_abs_difference(cosine, golden["similarity"]) <= GOLDEN_ATOL


# -- building --------------------------------------------------------------------------------------


def test_it_takes_any_grid_and_batch() -> None:
    backbone = tiny()
    assert (backbone.dim, backbone.patch_size, backbone.name) == (512, 16, "clip/ViT-B-16.openai")
    image = torch.randn(2, 3, 48, 32)
    features = backbone(image)
    assert features.shape == (2, 512, 3, 2)
    torch.testing.assert_close(backbone(image[1:]), features[1:], **tolerance(torch.float32))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_attention_and_width_equal_open_clips_own_tokens() -> None:
    image = torch.randn(1, 3, 224, 224)  # the table's own grid
    backbone = tiny(last_block="attention", project=False)
    assert backbone.dim == 64
    tower = backbone.tower
    tower.output_tokens = True
    pooled, tokens = tower(image)
    torch.testing.assert_close(tokens_of(backbone(image)), tokens, **tolerance(torch.float32))
    projected = tiny(last_block="attention")
    torch.testing.assert_close(projected.class_token(image), pooled, **tolerance(torch.float32))
    assert projected(image).shape == (1, 512, 14, 14)


def test_weights_of_openai_get_quick_gelu() -> None:
    quick = open_clip.transformer.QuickGELU
    for spec, wanted in (
        ("clip/ViT-B-16.openai", True),
        ("clip/ViT-B-16-quickgelu.openai", True),
        ("clip/ViT-B-16-quickgelu", True),
        ("clip/ViT-B-16", False),
        ("clip/ViT-B-16.laion2b_s34b_b88k", False),
    ):
        model = tiny(spec)
        kinds = {type(block.mlp.gelu) is quick for block in model.tower.transformer.resblocks}
        assert kinds == {wanted}, spec


def test_options_stand_in_the_name() -> None:
    spec = "clip/ViT-B-16.openai(last_block='attention', image_norm='imagenet')"
    backbone = tiny(spec)
    assert backbone.name == spec
    assert backbone.last_block == "attention"
    assert backbone.image_mean == (0.485, 0.456, 0.406)
    assert tiny().image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_a_file_in_openais_names(tmp_path: Path) -> None:
    source = tiny()
    state = {key: value.contiguous() for key, value in source.model.state_dict().items()}
    state["context_length"] = torch.tensor(77)
    save_file(state, tmp_path / "clip.safetensors")
    torch.manual_seed(1)
    options = {**TINY, "weights": tmp_path / "clip.safetensors"}
    loaded = create_backbone("clip/ViT-B-16.openai", **options)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(image), source(image))
    del state["visual.proj"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=r"visual\.proj"):
        create_backbone("clip/ViT-B-16", **{**options, "weights": tmp_path / "broken.safetensors"})


def test_texts_are_encoded() -> None:
    backbone = tiny()
    one, two = backbone.encode_text(["a cat", "a photo of a dog"])
    assert one.shape == (512,)
    torch.testing.assert_close(backbone.encode_text(["a cat"])[0], one, **tolerance(torch.float32))
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match=r"text 2 of 2 is empty"):
        backbone.encode_text(["a cat", " "])


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(UnknownNameError, match=r"ViT-B-16"):
        create_backbone("clip/ViT-B-61")
    with pytest.raises(UnknownNameError, match=r"clip/ViT-B-16\.openai"):
        create_backbone("clip/ViT-B-16.opnai")
    with pytest.raises(UnsupportedError, match="convolutional"):
        create_backbone("clip/RN50.openai", weights="random")
    with pytest.raises(UnsupportedError, match="timm/vit_base_patch16_siglip_224"):
        create_backbone("clip/ViT-B-16-SigLIP.webli", weights="random")
    with pytest.raises(ValueError, match="last block only"):
        tiny(layer=3)
    with pytest.raises(ValueError, match="last_block must be 'value' or 'value-mlp'"):
        tiny(last_block="values")
    with pytest.raises(ValueError, match=r"does not fit: .*'depth'"):
        create_backbone("clip/ViT-B-16(depth=3)", **TINY)
    assert "clip/ViT-B-16.openai" in list_backbones("clip/*", pretrained=True)


# -- published upsamplers whose backbone it is -----------------------------------------------------


@pytest.mark.parametrize("tag", ["loftup.clip_vitb16", "featup_jbu.clip", "featup_jbu.maskclip"])
def test_the_backbone_of_published_weights_is_built(tag: str) -> None:
    record = get_checkpoint(tag)
    backbone = tiny(record.backbone)
    assert (backbone.name, backbone.dim) == (record.backbone, record.feature_dim)
    assert backbone.image_mean == record.image_mean


@pytest.mark.parametrize("tag", ["clip", "maskclip"])
def test_published_weights_work_behind_it(
    weights_dir: Path, tag: str, recwarn: pytest.WarningsRecorder
) -> None:
    backbone = tiny(get_checkpoint(f"featup_jbu.{tag}").backbone)
    file = weights_dir / f"featup_jbu_{tag}.safetensors"
    upsampler = upfeat.load_upsampler(f"featup_jbu.{tag}", backbone, weights=file)
    out = upfeat.Pipeline(backbone, upsampler)(torch.rand(3, 48, 64))
    assert out.high.shape == (512, 48, 64)
    assert out.high.isfinite().all()
    assert not [warning for warning in recwarn if "trained" in str(warning.message)]
