"""LIIF against the stored outputs of the original, and its limits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.ops.runtime import strips
from upfeat.upsamplers.liif import LIIF, ImplicitFunction


class TestLIIF(UpsamplerContract):
    name = "liif"
    config = {"hidden_dim": 24, "num_hidden": 2}  # noqa: RUF012
    guided = False


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    tensors, meta = load_golden(golden_dir / "liif" / "identity_dim12.safetensors")
    upsampler = upfeat.from_official("liif", golden_state(tensors))
    assert upsampler.config["feat_unfold"]
    assert upsampler.config["cell_decode"]
    size = tuple(meta["arguments"]["out"])
    features, expected = tensors["input.inp"], tensors["output"]
    image = torch.zeros(len(features), 3, *size)
    output = upsampler(image, features).flatten(2).transpose(1, 2)
    assert max_abs_difference(output, expected) < GOLDEN_ATOL
    queried = upsampler.query(image, features, tensors["input.coord"])
    assert max_abs_difference(queried, expected) < GOLDEN_ATOL


def edsr_features(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """The encoder of the original: convolutions with residuals, no norms."""

    def conv(x: Tensor, name: str) -> Tensor:
        key = f"encoder.{name}"
        return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)

    head = x = conv(image, "head.0")
    for block in range(2):
        x = x + conv(conv(x, f"body.{block}.body.0").relu(), f"body.{block}.body.2")
    return head + conv(x, "body.2")


@pytest.mark.golden
@pytest.mark.parametrize("case", ["edsr_tiny", "identity_no_options"])
def test_golden_of_the_function(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "liif" / f"{case}.safetensors")
    state, arguments = golden_state(tensors), meta["arguments"]
    features = tensors["input.inp"]
    if case == "edsr_tiny":
        features = edsr_features(state, features)
    hidden = arguments["hidden"]
    function = ImplicitFunction(
        features.shape[1],
        arguments["out_dim"],
        hidden[0],
        len(hidden),
        *(arguments[key] for key in ("local_ensemble", "feat_unfold", "cell_decode")),
    )
    function.load_state_dict({k: v for k, v in state.items() if k.startswith("imnet.")})
    shares = function.prepare(features, tuple(arguments["out"]))
    output = function(shares, tensors["input.coord"])
    assert max_abs_difference(output, tensors["output"]) < GOLDEN_ATOL


def test_count_of_parameters() -> None:
    upsampler = upfeat.create_upsampler("liif", feature_dim=384)
    assert sum(p.numel() for p in upsampler.parameters()) == 1_920_384


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    upsampler = LIIF(8, hidden_dim=12, num_hidden=2).double()
    image = torch.zeros(2, 3, 13, 17, dtype=torch.float64)
    features = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    leaves = [features, *upsampler.parameters()]
    results = []
    for max_bytes in (2**24, 2**15):
        monkeypatch.setattr(strips, "STRIP_BYTES", max_bytes)
        out = upsampler(image, features)
        with torch.no_grad():
            torch.testing.assert_close(upsampler(image, features), out)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("unfold", [False, True])
@pytest.mark.parametrize("cell", [False, True])
def test_options_are_read_from_the_tensors(unfold: bool, cell: bool) -> None:
    state = LIIF(6, 10, 3, feat_unfold=unfold, cell_decode=cell).state_dict()
    official = {key.removeprefix("function."): value for key, value in state.items()}
    config = upfeat.from_official("liif", official).config
    assert (config["feat_unfold"], config["cell_decode"]) == (unfold, cell)
    assert (config["hidden_dim"], config["num_hidden"]) == (10, 3)


def test_refuses_what_does_not_fit(golden_dir: Path) -> None:
    with pytest.raises(ValueError, match="num_hidden"):
        upfeat.create_upsampler("liif", feature_dim=8, num_hidden=0)
    tensors, _ = load_golden(golden_dir / "liif" / "edsr_tiny.safetensors")
    with pytest.raises(CheckpointError, match="inputs"):
        upfeat.from_official("liif", golden_state(tensors))
    state = {**LIIF(6, 10, 3).state_dict(), "encoder.head.0.weight": torch.zeros(1)}
    state = {key.removeprefix("function."): value for key, value in state.items()}
    with pytest.raises(CheckpointError, match="encoder"):
        upfeat.from_official("liif", state)
