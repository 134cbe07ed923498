from __future__ import annotations

import copy
import math
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.nets import PYRAMIDS, TRANSFORMERS, build
from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.backbones import create_backbone
from upfeat.backbones.timm_backbone import TimmBackbone
from upfeat.errors import UnsupportedError

ALL = [*TRANSFORMERS, *PYRAMIDS]


@pytest.mark.parametrize("key", TRANSFORMERS)
def test_transformer_on_any_size(key: str) -> None:
    _, _, dim, patch = TRANSFORMERS[key]
    backbone = build(key)
    assert (backbone.dim, backbone.patch_size, backbone.size_multiple) == (dim, patch, patch)
    assert (backbone.layer, backbone.fixed_size) == (1, None)
    for h, w in [(1, 1), (3, 5), (7, 7), (16, 9)]:
        features = backbone(torch.rand(2, 3, h * patch, w * patch))
        assert features.shape == (2, dim, h, w)
        assert backbone.grid_size((h * patch, w * patch)) == (h, w)


@pytest.mark.parametrize("key", PYRAMIDS)
def test_pyramid_has_a_layer_per_stage(key: str) -> None:
    stages = PYRAMIDS[key][2]
    for layer, (dim, stride) in enumerate(stages):
        backbone = build(key, layer=layer)
        assert (backbone.dim, backbone.patch_size, backbone.layer) == (dim, stride, layer)
        assert backbone(torch.rand(1, 3, 2 * stride, 3 * stride)).shape == (1, dim, 2, 3)
    last = build(key)
    assert last.layer == len(stages) - 1


@given(h=st.integers(1, 6), w=st.integers(1, 6), batch=st.integers(1, 3), key=st.sampled_from(ALL))
@settings(max_examples=12)
def test_batch_equals_single_runs(h: int, w: int, batch: int, key: str) -> None:
    backbone = _cached(key)
    image = torch.randn(batch, 3, h * backbone.size_multiple, w * backbone.size_multiple)
    singles = torch.cat([backbone(one[None]) for one in image])
    torch.testing.assert_close(backbone(image), singles, **tolerance(torch.float32))


_cache: dict[str, torch.nn.Module] = {}


def _cached(key: str) -> TimmBackbone:
    if key not in _cache:
        _cache[key] = build(key)
    return _cache[key]  # type: ignore[return-value]


def test_features_are_the_normed_patch_tokens() -> None:
    backbone = _cached("dinov2_registers")
    image = torch.randn(1, 3, 42, 56)
    tokens = backbone.model.forward_features(image)  # type: ignore[operator]
    prefix = 5  # the class token and four registers
    assert tokens.shape == (1, prefix + 12, 48)
    expected = tokens[:, prefix:].mT.reshape(1, 48, 3, 4)
    torch.testing.assert_close(backbone(image), expected)


def test_norm_is_applied_to_the_chosen_layer() -> None:
    image = torch.randn(1, 3, 32, 32)
    for layer in (0, 1):
        normed = build("vit", layer=layer)
        plain = build("vit", layer=layer, norm=False)
        expected = normed.model.norm(plain(image).movedim(1, -1)).movedim(-1, 1)  # type: ignore[operator]
        torch.testing.assert_close(normed(image), expected)
        assert not torch.allclose(normed(image), plain(image), atol=1e-2)


def test_layers_count_from_both_ends() -> None:
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(build("vit", layer=0)(image), build("vit", layer=-2)(image))
    assert torch.equal(build("vit", layer=1)(image), build("vit", layer=-1)(image))
    assert not torch.equal(build("vit", layer=0)(image), build("vit", layer=1)(image))


@pytest.mark.parametrize("layer", [2, -3, 1.0, True, "last"])
def test_missing_layer_lists_valid_ones(layer: object) -> None:
    with pytest.raises(ValueError, match=r"no layer .* valid layers are 0 to 1, or -2 to -1"):
        build("vit", layer=layer)


@pytest.mark.parametrize("key", ["resnet", "convnext", "efficientnet"])
def test_stages_equal_those_of_features_only(key: str) -> None:
    import timm

    name = PYRAMIDS[key][0]
    image = torch.randn(1, 3, 64, 96)
    torch.manual_seed(3)
    backbones = [build(key, layer=layer) for layer in range(len(PYRAMIDS[key][2]))]
    reference = timm.create_model(name, features_only=True).eval()
    own = backbones[0].model.state_dict()
    state = reference.state_dict()
    # features_only flattens the first dot of a name: stages.0 becomes stages_0.
    flat = {k: own[k] if k in own else own[k.replace("_", ".", 1)] for k in state}
    reference.load_state_dict(flat)
    for backbone, expected in zip(backbones, reference(image), strict=True):
        torch.testing.assert_close(backbone(image), expected)


@pytest.mark.parametrize("key", ALL)
def test_half_precision(key: str) -> None:
    reference = build(key, layer=0)
    backbone = build(key, layer=0).to(torch.bfloat16)
    image = torch.randn(1, 3, 4 * reference.size_multiple, 2 * reference.size_multiple)
    features = backbone(image)
    assert features.dtype == torch.bfloat16
    expected = reference(image)
    error = (features.float() - expected).norm() / expected.norm()
    assert error < 0.05, f"relative error {error:.3f}"


@pytest.mark.parametrize("key", ALL)
def test_gradient_reaches_the_image(key: str) -> None:
    backbone = _cached(key)
    multiple = backbone.size_multiple
    image = torch.randn(1, 3, 2 * multiple, 2 * multiple, requires_grad=True)
    (backbone(image) * torch.randn(backbone.dim, 1, 1)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    # A rectified random network is flat in most places, a transformer in none.
    assert (image.grad != 0).float().mean() > (0.9 if key in TRANSFORMERS else 0.05)


def test_input_is_not_changed() -> None:
    image = torch.randn(1, 3, 32, 32)
    copy = image.clone()
    _cached("vit")(image)
    assert torch.equal(image, copy)


def test_normalisation_is_that_of_the_tag() -> None:
    vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    assert vit.name == "timm/vit_tiny_patch16_224"
    assert vit.image_mean == vit.image_std == (0.5, 0.5, 0.5)
    clip = create_backbone(
        "timm/vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", weights="random", depth=1
    )
    assert clip.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert clip.dim == 768
    resnet = _cached("resnet")
    assert resnet.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert resnet.image_std == pytest.approx((0.229, 0.224, 0.225))


def test_network_tied_to_one_size() -> None:
    name = "timm/beit_base_patch16_224"
    backbone = create_backbone(name, weights="random", depth=1)
    assert backbone.fixed_size == (224, 224)
    assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, 768, 14, 14)
    with pytest.raises(ValueError, match=r"\(224, 224\) only, got \(32, 32\); .*image_size="):
        backbone(torch.rand(1, 3, 32, 32))
    other = create_backbone(name, weights="random", depth=1, image_size=(48, 32))
    assert other.fixed_size == (48, 32)
    assert other(torch.rand(1, 3, 48, 32)).shape == (1, 768, 3, 2)


def test_sam_returns_its_neck() -> None:
    options = {"weights": "random", "depth": 1, "image_size": 64}
    sam = create_backbone("timm/samvit_base_patch16", **options)  # type: ignore[arg-type]
    assert sam.dim == 256
    assert sam(torch.rand(1, 3, 64, 64)).shape == (1, 256, 4, 4)
    plain = create_backbone("timm/samvit_base_patch16", norm=False, **options)  # type: ignore[arg-type]
    assert plain(torch.rand(1, 3, 64, 64)).shape == (1, 768, 4, 4)


def test_norm_of_the_pooled_vector_is_left_out() -> None:
    hiera = create_backbone("timm/hiera_tiny_224", weights="random")
    assert hiera(torch.rand(1, 3, 224, 224)).shape == (1, hiera.dim, 7, 7)


def test_high_resolution_net_needs_its_whole_pyramid() -> None:
    hrnet = create_backbone("timm/hrnet_w18_small", weights="random", layer=1)
    assert (hrnet.patch_size, hrnet.size_multiple) == (4, 32)
    assert hrnet(torch.rand(1, 3, 32, 64)).shape == (1, hrnet.dim, 8, 16)


def test_mobilevit_needs_an_even_grid() -> None:
    mobilevit = create_backbone("timm/mobilevitv2_050", weights="random")
    assert (mobilevit.patch_size, mobilevit.size_multiple) == (32, 64)
    assert mobilevit(torch.rand(1, 3, 64, 128)).shape == (1, mobilevit.dim, 2, 4)


def test_attention_over_blocks_says_what_it_needs() -> None:
    halo = create_backbone("timm/halonet26t", weights="random")
    assert halo(torch.rand(1, 3, 256, 256)).shape == (1, halo.dim, 8, 8)
    with pytest.raises(
        ValueError, match=r"images of \(224, 224\) at layer 4 .*made for \(256, 256\)"
    ):
        halo(torch.rand(1, 3, 224, 224))


def test_maps_that_do_not_cover_the_image_are_refused() -> None:
    inception = create_backbone("timm/inception_v3", weights="random", layer=2)
    with pytest.raises(UnsupportedError, match=r"returned .* does not cover the image evenly"):
        inception(torch.rand(1, 3, 160, 160))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="takes no option 'nonsense'"):
        create_backbone("timm/resnet18", weights="random", nonsense=1)
    with pytest.raises(ValueError, match="takes no option 'image_size'"):
        create_backbone("timm/resnet18", weights="random", image_size=64)
    with pytest.raises(ValueError, match="takes no option 'patch_size', or sets it itself"):
        create_backbone("timm/mixer_s32_224", weights="random", patch_size=4)
    with pytest.raises(ValueError, match="image_size must hold two positive"):
        create_backbone("timm/vit_tiny_patch16_224", weights="random", image_size=(0, 16))


def test_network_without_intermediates_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"mine \(Linear\) .*CallableBackbone"):
        TimmBackbone(
            torch.nn.Linear(1, 1), name="mine", image_mean=(0.5,) * 3, image_std=(0.5,) * 3
        )


def test_position_table_is_resized_not_cropped() -> None:
    backbone = _cached("vit")
    smooth = backbone.model.pos_embed  # type: ignore[assignment]
    assert smooth.shape == (1, 1 + 14 * 14, 192)  # type: ignore[union-attr]
    wide = backbone(torch.zeros(1, 3, 224, 448))
    assert wide.isfinite().all()
    # A constant image leaves the positions only: they must differ from place to place.
    assert wide.flatten(2).std(dim=2).mean() > 1e-3
    assert math.prod(wide.shape[-2:]) == 14 * 28


@pytest.mark.parametrize("key", ALL)
def test_gradients_work_after_inference_mode(key: str) -> None:
    """Nothing that is cached in inference mode may stand in the way of a later backward pass."""
    backbone = build(key)
    image = torch.randn(1, 3, 2 * backbone.size_multiple, backbone.size_multiple)
    with torch.inference_mode():
        first = backbone(image)
    again = backbone(image.requires_grad_(True))
    again.sum().backward()
    torch.testing.assert_close(again.detach(), first.clone(), **tolerance(torch.float32))


def _embedded(tokens: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    return tokens + (added.movedim(1, -1) if tokens.dim() == 4 else added.flatten(2).mT)


@pytest.mark.parametrize("key", ["vit", "dinov2_registers", "dinov3"])
def test_a_map_is_added_to_the_patch_embedding(key: str) -> None:
    """Equal to a patch embedding whose own forward adds the map."""
    backbone, patched = build(key), build(key)
    patch = int(backbone.patch_size)
    image = torch.randn(2, 3, 2 * patch, 3 * patch)
    added = torch.randn(2, backbone.dim, 2, 3, requires_grad=True)
    plain = backbone(image)
    features = backbone.forward_added(image, added)
    embed = patched.model.patch_embed
    forward = embed.forward
    embed.forward = lambda image: _embedded(forward(image), added)
    torch.testing.assert_close(features, patched(image), **tolerance(torch.float32))
    assert torch.equal(backbone(image), plain)  # nothing stays behind
    (gradient,) = torch.autograd.grad(features.square().sum(), added)
    assert (gradient != 0).all()
    one = backbone.forward_added(image, added[:1])
    torch.testing.assert_close(one[0], features[0], **tolerance(torch.float32))


def test_the_added_map_belongs_to_the_calling_thread() -> None:
    backbone = build("vit")
    image, added = torch.randn(1, 3, 32, 32), torch.randn(1, 192, 2, 2)
    expected = backbone(image)
    seen: list[torch.Tensor] = []
    other = threading.Thread(target=lambda: seen.append(backbone(image)))
    embed = backbone.model.patch_embed

    def meanwhile(*_: object) -> None:
        hook.remove()
        other.start()
        other.join()

    hook = embed.register_forward_pre_hook(meanwhile)
    changed = backbone.forward_added(image, added)
    assert torch.equal(seen[0], expected)
    assert not torch.allclose(changed, expected, atol=1e-2)


def test_a_map_that_cannot_be_added_is_refused() -> None:
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"added must be \(1, 192, 2, 2\) .* got \(1, 192, 3, 2\)"):
        build("vit").forward_added(image, torch.zeros(1, 192, 3, 2))
    with pytest.raises(UnsupportedError, match="has no patch embedding"):
        build("resnet").forward_added(image, torch.zeros(1, 512, 1, 1))
    swin = build("swin")
    with pytest.raises(UnsupportedError, match="choose a plain transformer"):
        swin.forward_added(image, torch.zeros(1, swin.dim, 1, 1))


# -- facets, several layers, position rules --------------------------------------------------------


def _tokens(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).mT  # (B, C, h, w) -> (B, h*w, C)


@pytest.mark.golden
def test_facets_equal_dinos(golden_dir: Path) -> None:
    """The image of the golden has another grid than the table, so the rule counts."""
    from timm.models.vision_transformer import VisionTransformer

    golden, _ = load_golden(golden_dir / "metrics2/dino_keys.safetensors")
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0,
        dynamic_img_size=True,
    )  # fmt: skip
    model.load_state_dict({key[2:]: value for key, value in golden.items() if key[:2] == "w."})

    def features(**options: object) -> torch.Tensor:
        half = (0.5, 0.5, 0.5)
        backbone = TimmBackbone(
            copy.deepcopy(model),
            name="tiny DINO",
            image_mean=half,
            image_std=half,
            positions="offset",
            **options,  # type: ignore[arg-type]
        )
        return _tokens(backbone(golden["images"]))

    for options, key in (
        ({"facet": "keys", "head_fastest": True}, "keys_lift"),
        ({"facet": "queries", "head_fastest": True}, "queries_lift"),
        ({"norm": False}, "tokens_lift"),
    ):
        assert max_abs_difference(features(**options), golden[key]) <= GOLDEN_ATOL
    for options, key in (({"facet": "keys"}, "keys_tokencut"), ({}, "last_layer")):
        assert max_abs_difference(features(**options), golden[key][:, 1:]) <= GOLDEN_ATOL


def test_several_layers_come_one_after_the_other() -> None:
    image = torch.randn(1, 3, 32, 48)
    both = build("vit", layers=(1, 0))
    assert (both.dim, both.layer) == (384, None)
    assert both.name == "timm/vit_tiny_patch16_224(layers=(1, 0))"
    last, first = both(image).chunk(2, 1)
    assert torch.equal(first, build("vit", layer=0)(image))
    assert torch.equal(last, build("vit", layer=1)(image))
    keys = build("vit", layers=(0, 1), facet="keys")(image)
    assert torch.equal(keys.chunk(2, 1)[1], build("vit", facet="keys")(image))
    with pytest.raises(ValueError, match="several grids"):
        build("swin", layers=(0, 1))
    with pytest.raises(ValueError, match="are none"):
        build("vit", layers=())
    with pytest.raises(UnsupportedError, match="no single class token"):
        both.class_token(image)


def test_options_may_stand_in_the_name() -> None:
    spec = "timm/vit_tiny_patch16_224(facet='keys', head_fastest=True, positions='offset')"
    backbone = create_backbone(spec, weights="random", depth=1)
    assert backbone.name == spec
    with pytest.raises(ValueError, match="facet must be 'tokens' or 'keys'"):
        create_backbone("timm/vit_tiny_patch16_224(facet='key')", weights="random", depth=1)


def test_positions_by_timms_rule_are_timms_own() -> None:
    image = torch.randn(1, 3, 32, 80)
    for key in ("vit", "deit3"):
        given = build(key, positions="resize")
        torch.testing.assert_close(given(image), build(key)(image), **tolerance(torch.float32))
        other = build(key, positions="offset")
        assert not torch.equal(other(image), given(image))
        own = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(other(own), given(own), **tolerance(torch.float32))
        assert torch.equal(copy.deepcopy(other)(image), other(image))


def test_what_has_no_facets_or_positions_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no plain transformer"):
        build("resnet", facet="keys")
    small = {"weights": "random", "depth": 1, "embed_dim": 48, "num_heads": 2}
    with pytest.raises(UnsupportedError, match="no joint projection"):
        create_backbone("timm/eva02_base_patch14_224", facet="keys", **small)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no learned position table"):
        build("dinov3", positions="offset")
