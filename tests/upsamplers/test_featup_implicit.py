"""FeatUp's implicit upsampler: goldens, fitting, files."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.ops.coordinates import inclusive_grid
from upfeat.upsamplers.featup_implicit import FeatUpImplicit, fitting_terms, smoothness_terms

TINY = {"pca_dim": 6, "n_freqs": 3, "steps": 2, "views": 3, "views_per_step": 2, "max_pad": 4}


class TestContract(UpsamplerContract):
    name = "featup_implicit"
    config: ClassVar = TINY
    channels = (8, 12)
    refused_transforms = ("grad", "grad of weights", "jvp", "vmap", "query")
    # Frequencies up to e^10 see the image's rounding, as LoftUp's do.
    half: ClassVar = {torch.bfloat16: 0.5, torch.float16: 0.5, torch.float64: 1e-3}

    def test_constants_are_of_the_inputs_type(self) -> None:
        """Its network is built anew for each image, with weights of torch's default type."""


def build(**config):
    return upfeat.create_upsampler("featup_implicit", feature_dim=3, **{**TINY, **config}).eval()


def pooled(image):
    return F.avg_pool2d(image, 8)


@torch.no_grad()
def test_golden(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "featup_implicit" / "color_dim16.safetensors")
    model = upfeat.from_official("featup_implicit", golden_state(tensors))
    image = tensors["input.image"]
    colors = model.colors(image)
    places = inclusive_grid((20, 24), image.device)[None]
    waves = model.network.fourier(torch.cat((places, colors), 1))
    features = torch.zeros(1, 16, 2, 2)  # a fitted network does not look at them
    differences = {
        "minmax": max_abs_difference(colors, tensors["intermediate.minmax"]),
        "fourier": max_abs_difference(
            torch.cat((waves, colors), 1), tensors["intermediate.fourier"]
        ),
        "output": max_abs_difference(model(image, features), tensors["output"]),
    }
    assert max(differences.values()) <= GOLDEN_ATOL


def test_golden_terms(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "featup_implicit_terms.safetensors")
    output, target = tensors["input.output_both"], tensors["input.target"]
    rec, size = fitting_terms(output, tensors["input.scales"].log(), target)
    variation, roughness = smoothness_terms(tensors["input.hr_feats"])
    total = rec + 0.001 * size + 0.05 * variation + 0.1 * roughness
    found = {
        "rec": rec,
        "magnitude": size,
        "magnitude_tv": variation,
        "blur_pin": roughness,
        "total": total,
    }
    ratios = {name: (x / tensors[f"output.{name}"]).item() for name, x in found.items()}
    assert all(ratio == pytest.approx(1, abs=1e-5) for ratio in ratios.values())


@torch.no_grad()
def test_golden_projection(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "featup_pca_projection.safetensors")
    model = upfeat.create_upsampler("featup_implicit", feature_dim=10, **{**TINY, "pca_dim": 4})
    model.components.copy_(tensors["input.components"])
    model.mean.copy_(tensors["input.mean"])
    projected = model.project(tensors["input.feats"])
    assert max_abs_difference(projected, tensors["output.projected"]) <= GOLDEN_ATOL
    assert max_abs_difference(model.unproject(projected), tensors["output.unprojected"]) <= 1e-5


def test_file_of_one_image(tmp_path: Path) -> None:
    """The original saves two state dicts side by side."""
    model = build()
    ours = {
        "network.fourier.phases": "1.biases",
        "network.norm_in.": "2.norm.",
        "network.conv1.": "4.",
        "network.norm_hidden.": "7.norm.",
        "network.conv2.": "8.",
        "network.conv3.": "10.",
    }
    state = {}
    for key, value in model.state_dict().items():
        for mine, theirs in ours.items():
            if key.startswith(mine):
                state[theirs + key.removeprefix(mine)] = value
    unprojector = {
        "components_": torch.randn(6, 3),
        "singular_values_": torch.rand(6),
        "mean_": torch.randn(3),
    }
    torch.save({"model": state, "unprojector": unprojector}, tmp_path / "image.pth")
    loaded = upfeat.from_official("featup_implicit", tmp_path / "image.pth")
    assert loaded.config["feature_dim"] == 3
    assert loaded.fitted
    assert torch.equal(loaded.components, unprojector["components_"])
    assert torch.equal(loaded.network.conv3.weight, model.network.conv3.weight)


def test_fitting_recovers_a_smooth_map() -> None:
    """Views of pooled colours are explained by the colours themselves, better as steps go by."""
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 4, 4), (32, 32), mode="bilinear")
    errors = []
    for steps in (1, 60):
        model = build(steps=steps, views=8, pca_dim=3, n_freqs=4, lr=2e-2)
        out = model.with_backbone(pooled)(image, pooled(image))
        errors.append(F.mse_loss(out, image).item())
    assert errors[1] < 0.5 * errors[0]


def test_seed_and_views_decide() -> None:
    image, features = torch.randn(1, 3, 32, 40), torch.randn(1, 3, 4, 5)
    first = build()(image, features)
    torch.manual_seed(5)  # the global generator plays no part, and is left alone
    state = torch.get_rng_state()
    again = build()
    torch.set_rng_state(state)
    assert torch.equal(again(image, features), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(build(seed=1)(image, features), first)
    assert not torch.equal(build().with_backbone(pooled)(image, features), first)


def test_fitted_network_is_kept_saved_and_bound_to_its_image(tmp_path: Path) -> None:
    image, features = torch.randn(1, 3, 32, 40), torch.randn(1, 3, 4, 5)
    model = build()
    expected = model(image, features)
    assert not model.fitted
    assert torch.equal(model.fit(image, features)(image, features), expected)
    model.save_pretrained(tmp_path / "saved")
    loaded = FeatUpImplicit.from_pretrained(tmp_path / "saved")
    assert loaded.fitted
    loaded.steps = 0  # it has nothing to fit
    assert torch.equal(loaded(image, torch.zeros_like(features)), expected)
    assert loaded(image, features, (50, 60)).shape == (1, 3, 50, 60)
    with pytest.raises(ValueError, match="another image"):
        loaded(image.flip(3), features)
    loaded.steps = model.steps
    refitted = loaded.fit(image.flip(3), features)
    assert refitted.fitted
    with pytest.raises(ValueError, match="one image"):
        model.fit(image.expand(2, -1, -1, -1), features.expand(2, -1, -1, -1))


def test_progress_and_inference_mode(capsys: pytest.CaptureFixture[str]) -> None:
    image, features = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 2, 2)
    with torch.inference_mode():
        build(progress=True)(image, features)
    assert "fitting" in capsys.readouterr().out


def test_bad_arguments() -> None:
    for options, message in (({"steps": 0}, "steps"), ({"lr": 0.0}, "lr"), ({"pca_dim": 0}, "pca")):
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="one for each cell"):
        build()(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 5, 5))
    with pytest.raises(ValueError, match="the backbone gives"):
        build().with_backbone(lambda x: x)(torch.randn(1, 3, 16, 16), torch.randn(1, 3, 2, 2))


def test_threads_fit_side_by_side() -> None:
    """Each fit draws from its own generator, whatever else draws from torch's meanwhile."""
    images = torch.randn(8, 1, 3, 24, 24)
    model = build(steps=6)
    expected = [model(image, pooled(image)) for image in images]
    drawn = threading.Event()

    def draw() -> None:
        while not drawn.is_set():
            torch.rand(10)

    noise = threading.Thread(target=draw)
    noise.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda image: model(image, pooled(image)), images))
    finally:
        drawn.set()
        noise.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
