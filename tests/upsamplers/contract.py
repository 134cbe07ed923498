"""The contract of every upsampler, as one inherited tester.

A method's test file subclasses :class:`UpsamplerContract` and sets a handful of attributes. What
the method can do is declared in ``info.abilities``: every entry is compared with what the method
does, and what it cannot do must be refused clearly.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

import upfeat
from tests.layouts import expanded, layouts
from tests.tolerances import tolerance
from tests.upsamplers.module_copies import data_parallel_replica, plain_weights
from upfeat.errors import UnsupportedError
from upfeat.ops.coordinates import pixel_centres
from upfeat.ops.images import resize_bilinear
from upfeat.upsamplers.fitted import with_views
from upfeat.upsamplers.registry import get_class, needs_feature_dim

HALF = {torch.bfloat16: 0.015, torch.float16: 0.003}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Mean absolute difference in units of the expected output's spread, or size if constant."""
    spread, size = float(expected.std()), float(expected.abs().max())
    error = float((actual.float() - expected).abs().mean())
    return error / max(spread if spread > 1e-3 * size else size, 1e-6)


class UpsamplerContract:
    """Inherit, set ``name`` and what differs from the defaults, and call the class ``Test…``."""

    name: ClassVar[str]
    config: ClassVar[dict[str, Any]] = {}
    """Constructor arguments of a small instance, without ``feature_dim``."""
    channels: ClassVar[tuple[int, ...]] = (16, 24)
    """Feature widths to try; the first is the usual one."""
    grid: ClassVar[tuple[int, int]] = (5, 7)
    image_size: ClassVar[tuple[int, int]] = (35, 49)
    output_sizes: ClassVar[tuple[tuple[int, int], ...]] = ((20, 28), (23, 31), (60, 75))
    """Asked sizes: smaller than the image, odd, larger than the image."""
    smallest_grid: ClassVar[tuple[int, int]] = (1, 1)
    """The smallest grid that the method takes; anything smaller must raise ValueError."""
    narrow: ClassVar[bool] = True
    """Whether it makes an output one pixel wide; otherwise it must raise ValueError."""
    value_channels: ClassVar[int] = 4
    guided: ClassVar[bool] = True
    """Whether the image influences the output."""
    half: ClassVar[dict[torch.dtype, float]] = HALF
    """Largest mean absolute difference to float32, relative to the output's spread."""
    refused_transforms: ClassVar[tuple[str, ...]] = ()
    """Transforms of ``torch.func`` that the method cannot take; it must raise UnsupportedError."""

    @property
    def other_size(self) -> tuple[int, int]:
        """An output size that is not the image's."""
        return self.output_sizes[0]

    # -- helpers ---------------------------------------------------------------------------------

    def build(self, channels: int | None = None, **config: Any) -> upfeat.Upsampler:
        torch.manual_seed(1)
        width = channels or self.channels[0]
        extra = {"feature_dim": width} if needs_feature_dim(self.name) else {}
        return upfeat.create_upsampler(self.name, **extra, **{**self.config, **config}).eval()

    def inputs(
        self,
        batch: int = 1,
        channels: int | None = None,
        image_size: tuple[int, int] | None = None,
        grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(batch, 3, *(image_size or self.image_size), generator=generator)
        shape = (batch, channels or self.channels[0], *(grid or self.grid))
        features = torch.randn(shape, generator=generator)
        return image.to(**kwargs), features.to(**kwargs)

    # -- shapes, sizes, batches --------------------------------------------------------------------

    def test_info_is_complete(self) -> None:
        info = get_class(self.name).info
        assert info.name == self.name
        assert info.summary
        assert (info.image_mean is None) == (info.image_std is None)
        if info.paper is not None:
            assert info.year
            assert info.code_license

    @torch.no_grad()
    def test_default_output_size_is_the_images(self, device: torch.device) -> None:
        image, features = self.inputs(device=device)
        output = self.build().to(device)(image, features)
        assert output.shape == (1, self.channels[0], *self.image_size)
        assert output.device == features.device
        assert torch.isfinite(output).all()

    @torch.no_grad()
    def test_asked_output_sizes(self, device: torch.device) -> None:
        image, features = self.inputs(device=device)
        upsampler = self.build().to(device)
        for size in self.output_sizes:
            assert upsampler(image, features, size).shape[2:] == size

    @torch.no_grad()
    def test_other_widths(self) -> None:
        for channels in self.channels:
            image, features = self.inputs(channels=channels)
            assert self.build(channels)(image, features).shape[1] == channels

    @torch.no_grad()
    def test_batch_of_two_equals_two_single_runs(self) -> None:
        image, features = self.inputs(batch=2)
        upsampler = self.build()
        together = upsampler(image, features)
        for i in range(2):
            alone = upsampler(image[i : i + 1], features[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, **tolerance(torch.float32))

    # Every subclass runs this test with its own method; examples are neither stored nor shared.
    @settings(max_examples=8, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    @torch.no_grad()
    def test_any_sizes(self, data: st.DataObject) -> None:
        rows = st.integers(self.smallest_grid[0], self.smallest_grid[0] + 6)
        cols = st.integers(self.smallest_grid[1], self.smallest_grid[1] + 6)
        grid = (data.draw(rows), data.draw(cols))
        output_size = tuple(n * data.draw(st.integers(1, 5)) for n in grid)
        output_size = tuple(n + data.draw(st.integers(0, 3)) for n in output_size)
        image_size = (data.draw(st.integers(9, 48)), data.draw(st.integers(9, 48)))
        batch = data.draw(st.integers(1, 2))
        image, features = self.inputs(batch=batch, image_size=image_size, grid=grid)
        output = self.build()(image, features, output_size)
        assert output.shape == (batch, self.channels[0], *output_size)
        assert torch.isfinite(output).all()

    # -- precision ---------------------------------------------------------------------------------

    @torch.no_grad()
    def test_dtypes(self, dtype: torch.dtype, device: torch.device) -> None:
        image, features = self.inputs(device=device)
        upsampler = self.build().to(device)
        expected = upsampler(image, features)
        actual = upsampler.to(dtype)(image.to(dtype), features.to(dtype))
        assert actual.dtype == dtype
        assert torch.isfinite(actual).all()
        error = relative_error(actual, expected)
        assert error < self.half.get(dtype, 1e-4), f"mean error {error:.3g} of the spread"

    @pytest.mark.parametrize("dtype", list(HALF), ids=lambda dtype: str(dtype)[6:])
    @torch.no_grad()
    def test_half_precision_of_hard_inputs(self, dtype: torch.dtype, device: torch.device) -> None:
        """Zeros, constants and large numbers: near what float32 makes of the same numbers."""
        image, features = self.inputs(device=device)
        with_zero = features.clone()
        with_zero[:, :, 1, 2] = 0
        cases = {
            "one zero vector": (image, with_zero),
            "only zeros": (image, torch.zeros_like(features)),
            "constant features": (image, torch.full_like(features, 1.5)),
            "constant image": (torch.full_like(image, 0.7), features),
            "deviation 1000": (image, 1000 * features),
            "deviation 0.001": (image, 0.001 * features),
        }
        upsampler = self.build().to(device)
        half = copy.deepcopy(upsampler).to(dtype)
        for name, case in cases.items():
            given = [x.to(dtype) for x in case]
            actual = half(*given)
            assert torch.isfinite(actual).all(), name
            error = relative_error(actual, upsampler(*(x.float() for x in given)))
            # Logits made of large features are large: the rounding of the weights alone shows.
            limit = HALF[dtype] * (10 if name == "deviation 1000" else 1)
            assert error < limit, f"{name}: mean error {error:.3g} of the spread"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
    @torch.no_grad()
    def test_constants_are_of_the_inputs_type(self, dtype: torch.dtype) -> None:
        """No table of a method is made in torch's default type: float64 is float64 throughout."""
        image, features = self.inputs(dtype=dtype)
        upsampler = self.build().to(dtype)
        expected = upsampler(image, features, self.output_sizes[1])
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            actual = upsampler(image, features, self.output_sizes[1])
        finally:
            torch.set_default_dtype(usual)
        torch.testing.assert_close(actual, expected, **tolerance(dtype))

    @torch.no_grad()
    def test_features_of_another_dtype_than_the_weights(self) -> None:
        image, features = self.inputs()
        assert self.build()(image, features.bfloat16()).dtype == torch.bfloat16

    @torch.no_grad()
    def test_autocast(self, device: torch.device) -> None:
        image, features = self.inputs(device=device)
        upsampler = self.build().to(device)
        expected = upsampler(image, features)
        with torch.autocast(device.type, torch.bfloat16):
            actual = upsampler(image, features)
        assert actual.dtype == torch.bfloat16  # as of torch's modules
        assert relative_error(actual, expected) < self.half[torch.bfloat16]

    # -- purity ------------------------------------------------------------------------------------

    @torch.no_grad()
    def test_deterministic_and_inputs_unchanged(self) -> None:
        image, features = self.inputs()
        before = image.clone(), features.clone()
        upsampler = self.build()
        first, second = upsampler(image, features), upsampler(image, features)
        assert torch.equal(first, second)
        assert torch.equal(image, before[0])
        assert torch.equal(features, before[1])
        assert first.data_ptr() != second.data_ptr()

    @pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
    def test_layouts_in_memory_are_equal(self, grad: bool) -> None:
        image, features = self.inputs(batch=2)
        values = (
            torch.randn(2, self.value_channels, *self.grid)
            if self.build().info.abilities.mixes_values
            else None
        )
        upsampler = self.build()
        kinds = list(layouts(features))
        with torch.set_grad_enabled(grad):
            for size in (self.output_sizes[0], (9, 1)):
                if size == (9, 1) and not self.narrow:
                    with pytest.raises(ValueError, match="output"):
                        upsampler(image, features, size)
                    continue
                expected = upsampler(image, features, size, values)
                for kind, other in zip(kinds, kinds[1:] + kinds[:1], strict=True):
                    actual = upsampler(
                        layouts(image)[kind],
                        layouts(features)[other],
                        size,
                        None if values is None else layouts(values)[kind],
                    )
                    torch.testing.assert_close(
                        actual,
                        expected,
                        **tolerance(torch.float32),
                        msg=f"{kind} image, {other} map",
                    )

    @torch.no_grad()
    def test_expanded_inputs_equal_their_copies(self) -> None:
        image, features = self.inputs(batch=2)
        upsampler = self.build()
        for kind, part in expanded(features).items():
            picture = expanded(image)[kind]
            torch.testing.assert_close(
                upsampler(picture, part, self.output_sizes[0]),
                upsampler(picture.contiguous(), part.contiguous(), self.output_sizes[0]),
                **tolerance(torch.float32),
                msg=kind,
            )

    def test_threads_side_by_side(self) -> None:
        """Threads disturb neither each other nor torch's generator."""
        image, features = self.inputs(batch=6)
        pairs = list(zip(image.split(1), features.split(1), strict=True))
        upsampler = self.build()
        state = torch.get_rng_state()

        @torch.no_grad()
        def call(pair: tuple[Tensor, Tensor]) -> Tensor:
            return upsampler(*pair, self.other_size)

        expected = [call(pair) for pair in pairs]
        with ThreadPoolExecutor(3) as pool:
            actual = list(pool.map(call, pairs))
        assert all(map(torch.equal, actual, expected))
        assert torch.equal(torch.get_rng_state(), state)

    @torch.no_grad()
    def test_image_matters_if_and_only_if_guided(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        same = torch.equal(upsampler(image, features), upsampler(image.flip(3), features))
        assert same != self.guided

    @torch.no_grad()
    def test_training_and_eval_shapes_agree(self) -> None:
        image, features = self.inputs(batch=2)
        upsampler = self.build()
        assert upsampler.train()(image, features).shape == upsampler.eval()(image, features).shape

    # -- gradients ---------------------------------------------------------------------------------

    def test_gradients_reach_weights_features_and_image(self) -> None:
        image, features = self.inputs()
        image.requires_grad_()
        features.requires_grad_()
        upsampler = self.build()
        if not upsampler.info.abilities.gradients:
            assert not upsampler(image, features, self.output_sizes[0]).requires_grad
            return
        upsampler(image, features, self.output_sizes[0]).square().sum().backward()
        assert features.grad is not None
        assert features.grad.abs().sum() > 0
        if self.guided:
            assert image.grad is not None
            assert image.grad.abs().sum() > 0
        for key, parameter in upsampler.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches {key}"
            assert torch.isfinite(parameter.grad).all(), key

    def test_output_with_and_without_gradients_agree(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        with_graph = upsampler(image, features).detach()
        with torch.no_grad():
            without = upsampler(image, features)
        torch.testing.assert_close(with_graph, without, atol=5e-5, rtol=1e-4)

    # -- what torch does with modules --------------------------------------------------------------

    def gradients(
        self, upsampler: upfeat.Upsampler, call: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor | None]:
        """Gradients of a call in the inputs and in the weights of ``upsampler``."""
        image, features = (x.requires_grad_() for x in self.inputs())
        weights = list(upsampler.parameters())
        loss = call(image, features).square().mean()
        return list(torch.autograd.grad(loss, [image, features, *weights], allow_unused=True))

    def test_activation_checkpointing(self) -> None:
        upsampler = self.build()
        if not upsampler.info.abilities.gradients:
            return

        def call(image: Tensor, features: Tensor) -> Tensor:
            return checkpoint(upsampler, image, features, self.other_size, use_reentrant=False)

        expected = self.gradients(upsampler, lambda i, f: upsampler(i, f, self.other_size))
        torch.testing.assert_close(self.gradients(upsampler, call), expected)

    @pytest.mark.parametrize("train", [False, True])
    def test_replicas_of_data_parallel(self, train: bool) -> None:
        image, features = self.inputs(batch=2)
        upsampler = self.build().train(train)
        with torch.set_grad_enabled(train):
            torch.manual_seed(0)
            expected = upsampler(image, features, self.other_size)
            torch.manual_seed(0)
            actual = data_parallel_replica(upsampler)(image, features, self.other_size)
        torch.testing.assert_close(actual, expected, **tolerance(torch.float32))
        if train and upsampler.info.abilities.gradients and list(upsampler.parameters()):
            actual.sum().backward()
            assert all(weight.grad is not None for weight in upsampler.parameters())

    @torch.no_grad()
    def test_tiles_and_query_of_replicas(self) -> None:
        image, features = self.inputs()
        replica = data_parallel_replica(self.build())
        expected = replica(image, features)
        if replica.info.abilities.tiles:
            tiles = [tile for _, tile in replica.tiles(image, features, max_bytes=50_000)]
            torch.testing.assert_close(torch.cat(tiles, dim=2), expected, atol=5e-5, rtol=1e-4)
        if replica.info.abilities.query:
            centres = pixel_centres(self.image_size, dtype=torch.float64)[None]
            pixels = replica.query(image, features, centres).mT.view_as(expected)
            torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=1e-4)

    def test_weights_that_are_plain_tensors(self) -> None:
        upsampler = self.build()

        def call(image: Tensor, features: Tensor) -> Tensor:
            return functional_call(upsampler, plain_weights(upsampler), (image, features))

        image, features = self.inputs()
        with torch.no_grad():
            same = functional_call(upsampler, plain_weights(upsampler), (image, features))
            torch.testing.assert_close(same, upsampler(image, features))
            weights = {name: 0.9 * w for name, w in plain_weights(upsampler).items()}
            other = functional_call(upsampler, weights, (image, features))
            changed = copy.deepcopy(upsampler)
            changed.load_state_dict({**upsampler.state_dict(), **weights})
            torch.testing.assert_close(other, changed(image, features))
        if upsampler.info.abilities.gradients:
            torch.testing.assert_close(
                self.gradients(upsampler, call), self.gradients(upsampler, upsampler)
            )

    def transforms(self, upsampler: upfeat.Upsampler) -> dict[str, Callable[[], None]]:
        """Transforms of ``torch.func``, each with a comparison to what autograd says."""
        image, features = self.inputs()
        size = self.other_size

        def loss(features: Tensor, image: Tensor = image) -> Tensor:
            return upsampler(image, features, size).square().mean()

        def slopes() -> tuple[Tensor, ...]:
            leaves = [x.clone().requires_grad_() for x in (features, image)]
            found = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
            return tuple(
                torch.zeros_like(leaf) if slope is None else slope
                for slope, leaf in zip(found, leaves, strict=True)
            )

        def grad() -> None:
            actual = torch.func.grad(loss, argnums=(0, 1))(features, image)
            torch.testing.assert_close(actual, slopes())

        def weights() -> None:
            parameters = {name: w.detach() for name, w in upsampler.named_parameters()}

            def of_weights(weights: dict[str, Tensor]) -> Tensor:
                out: Tensor = functional_call(upsampler, weights, (image, features, size))
                return out.square().mean()

            actual = torch.func.grad(of_weights)(parameters)
            if parameters:
                found = torch.autograd.grad(loss(features), list(upsampler.parameters()))
                torch.testing.assert_close(list(actual.values()), list(found))

        def jvp() -> None:
            inputs = (features, image)
            tangents = tuple(torch.linspace(-1, 1, x.numel()).view_as(x) for x in inputs)
            _, actual = torch.func.jvp(loss, inputs, tangents)
            expected = sum((s * t).sum() for s, t in zip(slopes(), tangents, strict=True))
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
            for mode in (torch.enable_grad(), torch.no_grad()):
                with mode, forward_ad.dual_level():
                    pairs = zip(inputs, tangents, strict=True)
                    dual = loss(*(forward_ad.make_dual(*pair) for pair in pairs))
                    torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, actual)

        def vmap() -> None:
            pair = torch.stack((features, features.flip(3)))
            images = torch.stack((image, image.flip(2)))
            call = torch.func.vmap(lambda i, x: upsampler(i, x, size))
            with torch.no_grad():
                actual = call(images, pair)
                expected = torch.stack(
                    [upsampler(*one, size) for one in zip(images, pair, strict=True)]
                )
                torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)

        def query() -> None:
            centres = pixel_centres(size, dtype=features.dtype)[None]

            def answer(features: Tensor) -> Tensor:
                return upsampler.query(image, features, centres, output_size=size).square().mean()

            torch.testing.assert_close(torch.func.grad(answer)(features), slopes()[0])

        def tiles() -> None:
            torch.func.grad(lambda x: next(upsampler.tiles(image, x, size))[1].sum())(features)

        comparisons = {"grad": grad, "grad of weights": weights, "jvp": jvp, "vmap": vmap}
        if upsampler.info.abilities.query and upsampler.info.abilities.any_size:
            comparisons["query"] = query
        if upsampler.info.abilities.tiles:
            with pytest.raises(UnsupportedError, match=f"^{self.name} has no tiles"):
                tiles()
        return comparisons

    def test_transforms_of_torch_func(self) -> None:
        """Right or refused in words of ours."""
        upsampler = self.build()
        for name, compare in self.transforms(upsampler).items():
            if name in self.refused_transforms:
                with pytest.raises(UnsupportedError, match=f"^{self.name} does not run"):
                    compare()
            else:
                compare()

    # -- values ------------------------------------------------------------------------------------

    @torch.no_grad()
    def test_values(self) -> None:
        image, features = self.inputs()
        values = torch.randn(1, self.value_channels, *self.grid)
        upsampler = self.build()
        if not upsampler.info.abilities.mixes_values:
            with pytest.raises(UnsupportedError, match="values"):
                upsampler(image, features, values=values)
            return
        output = upsampler(image, features, values=values)
        assert output.shape == (1, self.value_channels, *self.image_size)
        torch.testing.assert_close(
            upsampler(image, features, values=features),
            upsampler(image, features),
            **tolerance(torch.float32),
        )

    @torch.no_grad()
    def test_values_are_mixed_as_declared(self) -> None:
        """A mixing method's output is additive in the values; a regressing one ignores them."""
        image, features = self.inputs()
        upsampler = self.build()
        mixes = upsampler.info.abilities.mixes_values
        upsampler.info = upsampler.info.with_abilities(mixes_values=True)
        first, second = torch.randn(2, *features.shape)
        parts = [upsampler(image, features, values=v) for v in (first, second, first + second)]
        additive = torch.allclose(parts[0] + parts[1], parts[2], atol=1e-4, rtol=1e-4)
        assert additive == mixes

    @torch.no_grad()
    def test_linear_as_declared(self) -> None:
        """One set of weights for all channels that sums to 1: a head, bias included, commutes."""
        image, features = self.inputs()
        upsampler = self.build()
        if not upsampler.info.abilities.mixes_values:
            return  # Abilities refuses linear without mixes_values
        head = torch.nn.Conv2d(self.channels[0], self.value_channels, 1)
        after = head(upsampler(image, features))
        before = upsampler(image, features, values=head(features))
        ones = upsampler(image, features, values=torch.ones(1, self.value_channels, *self.grid))
        commutes = torch.allclose(after, before, atol=1e-4, rtol=1e-4)
        sums = torch.allclose(ones, torch.ones_like(ones), atol=1e-4)
        assert (commutes and sums) == upsampler.info.abilities.linear

    # -- sizes, backbones, fitting -----------------------------------------------------------------

    @torch.no_grad()
    def test_any_size_as_declared(self) -> None:
        """A method of fixed ratios gives, at any other size, its own map resized."""
        image, features = self.inputs()
        upsampler = self.build()
        size = (self.image_size[0] + 4, self.image_size[1] + 3)
        wanted = upsampler(image, features, size)
        if torch.allclose(wanted, resize_bilinear(features, size), atol=1e-4):
            return  # a bilinear map, resized bilinearly, stays what it is
        resized = False
        for ratio in {upsampler.info.factor or 2, *range(2, 9), 16}:
            own = upsampler(image, features, (self.grid[0] * ratio, self.grid[1] * ratio))
            again = self.resize(own, size)
            resized |= torch.allclose(again, wanted, atol=1e-4, rtol=1e-4)
        assert resized != upsampler.info.abilities.any_size

    def resize(self, own: Tensor, size: tuple[int, int]) -> Tensor:
        """How a method of fixed ratios brings its map to another size."""
        return resize_bilinear(own, size)

    @torch.no_grad()
    def test_universal_as_declared(self) -> None:
        """One instance takes features of several widths; one that fits each image has no weights
        to begin with, and may be built for a width."""
        upsampler = self.build()
        abilities = upsampler.info.abilities
        if abilities.per_image:
            assert abilities.universal
            return
        assert abilities.universal != needs_feature_dim(self.name)
        for channels in self.channels if abilities.universal else ():
            image, features = self.inputs(channels=channels)
            assert upsampler(image, features).shape[1] == channels

    def test_per_image_as_declared(self) -> None:
        """A method that optimises at test time takes steps of an optimiser in its forward call."""
        taken = []
        hook = register_optimizer_step_pre_hook(lambda *_: taken.append(1))
        try:
            self.build()(*self.inputs())
        finally:
            hook.remove()
        assert bool(taken) == get_class(self.name).info.abilities.per_image

    def test_views_as_declared(self) -> None:
        """Only a method that looks at views makes something of a backbone."""
        upsampler = self.build()
        given = with_views(upsampler, lambda image: image)
        assert (given is not upsampler) == upsampler.info.views

    # -- tiles -------------------------------------------------------------------------------------

    @torch.no_grad()
    def test_tiles_cover_the_output_once(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        if not upsampler.info.abilities.tiles:
            with pytest.raises(UnsupportedError, match="tiles"):
                next(upsampler.tiles(image, features))
            return
        for size in (None, self.output_sizes[1], self.output_sizes[2]):
            expected = upsampler(image, features, size)
            for max_bytes in (1, 60_000, 1 << 30):
                actual = torch.full_like(expected, torch.nan)
                for rows, tile in upsampler.tiles(image, features, size, max_bytes=max_bytes):
                    assert torch.isnan(actual[:, :, rows]).all(), "tiles overlap"
                    actual[:, :, rows] = tile
                torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)

    @torch.no_grad()
    def test_tiles_take_values(self) -> None:
        upsampler = self.build()
        if not (upsampler.info.abilities.tiles and upsampler.info.abilities.mixes_values):
            return
        image, features = self.inputs()
        values = torch.randn(1, self.value_channels, *self.grid)
        tiles = upsampler.tiles(image, features, values=values, max_bytes=50_000)
        actual = torch.cat([tile for _, tile in tiles], dim=2)
        expected = upsampler(image, features, values=values)
        torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)

    def test_tiles_lead_to_values(self) -> None:
        upsampler = self.build().requires_grad_(False)
        if not (upsampler.info.abilities.tiles and upsampler.info.abilities.linear):
            return
        image, features = self.inputs()
        values = torch.randn(1, self.value_channels, *self.grid, requires_grad=True)
        expected = upsampler(image, features, values=values)
        grad = torch.randn_like(expected)
        actual = torch.zeros_like(values)
        for rows, tile in upsampler.tiles(image, features, values=values, max_bytes=50_000):
            # A tile's graph is its own, so that it can go before the next tile is computed.
            actual += torch.autograd.grad(tile, values, grad[:, :, rows])[0]
        wanted = torch.autograd.grad(expected, values, grad)[0]
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)

    # -- single positions --------------------------------------------------------------------------

    @torch.no_grad()
    def test_query(self) -> None:
        image, features = self.inputs(batch=2)
        upsampler = self.build()
        coords = pixel_centres(self.image_size, dtype=torch.float64).expand(2, -1, -1)
        if not upsampler.info.abilities.query:
            with pytest.raises(UnsupportedError, match="query"):
                upsampler.query(image, features, coords)
            return
        expected = upsampler(image, features).flatten(2).transpose(1, 2)  # (B, HW, C)
        some = torch.randperm(coords.shape[1])[:50]
        torch.testing.assert_close(
            upsampler.query(image, features, coords), expected, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(
            upsampler.query(image, features, coords[:, some]),
            expected[:, some],
            atol=1e-4,
            rtol=1e-4,
        )
        if upsampler.info.abilities.any_size:
            size = (self.image_size[0] + 5, self.image_size[1] + 3)
            coords = pixel_centres(size, dtype=torch.float64).expand(2, -1, -1)
            torch.testing.assert_close(
                upsampler.query(image, features, coords, output_size=size),
                upsampler(image, features, size).flatten(2).transpose(1, 2),
                atol=1e-4,
                rtol=1e-4,
            )
        corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).expand(2, -1, -1)
        assert torch.isfinite(upsampler.query(image, features, corners)).all()
        assert upsampler.query(image, features, corners[:, :0]).shape == (2, 0, self.channels[0])
        for wrong in (corners * 1.1, corners[0], corners[:1], corners[..., :1], corners.long()):
            with pytest.raises(ValueError, match="coords"):
                upsampler.query(image, features, wrong)

    # -- files -------------------------------------------------------------------------------------

    @torch.no_grad()
    def test_save_and_load(self, tmp_path: Path) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        upsampler.info = dataclasses.replace(upsampler.info, weights_license="MIT")
        upsampler.save_pretrained(tmp_path / "saved")
        loaded = upfeat.Upsampler.from_pretrained(tmp_path / "saved")
        assert type(loaded) is type(upsampler)
        assert loaded.config == upsampler.config
        assert loaded.info == upsampler.info
        assert not loaded.training
        assert torch.equal(loaded(image, features), upsampler(image, features))
        assert (tmp_path / "saved" / "README.md").read_text().startswith("---\n")

    @torch.no_grad()
    def test_deepcopy(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        assert torch.equal(copy.deepcopy(upsampler)(image, features), upsampler(image, features))

    # -- errors ------------------------------------------------------------------------------------

    def test_bad_inputs(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        cases: list[tuple[str, tuple[Any, ...]]] = [
            ("4 dimensions", (image[0], features)),
            ("4 dimensions", (image, features[0])),
            ("3 channels", (image[:, :2], features)),
            ("swapped", (features, image)),
            ("same batch size", (image.expand(2, -1, -1, -1), features)),
            ("empty", (image, features[:, :, :0])),
            ("empty", (image[:, :, :, :0], features)),
            ("floating point", (image.to(torch.uint8), features)),
            ("pair", (image, features, "14")),
            ("positive", (image, features, 0)),
            ("positive", (image, features, (0, 5))),
            ("torch.Tensor", (image.numpy(), features)),
        ]
        for message, arguments in cases:
            with pytest.raises(ValueError, match=message):
                upsampler(*arguments)
        if upsampler.info.abilities.mixes_values:
            with pytest.raises(ValueError, match="share batch and grid"):
                upsampler(image, features, values=features[:, :, :-1])
        with pytest.raises(ValueError, match="one device"):
            upsampler(image, features.to("meta"))

    def test_impossible_sizes_and_budgets_are_refused_before_the_work(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        for name in ("encode", "encode_values", "decode", "decode_at"):
            monkeypatch.setattr(upsampler, name, lambda *_: pytest.fail("began to work"))
        sizes: list[Any] = [(10**9, 10**9), (10**6, 10**6), (4, math.nan), "88"]
        coords = torch.zeros(1, 1, 2)
        for size in sizes:
            with pytest.raises(ValueError, match=r"ask for a smaller|output_size must"):
                upsampler(image, features, size)
            if upsampler.info.abilities.query:
                with pytest.raises(ValueError, match=r"ask for a smaller|output_size must"):
                    upsampler.query(image, features, coords, output_size=size)
        if not upsampler.info.abilities.tiles:
            return
        with pytest.raises(ValueError, match=r"row of the output|output_size must"):
            next(upsampler.tiles(image, features, (1, 2**40)))
        budgets: list[Any] = [math.inf, math.nan, None, b"9", "9", -1, 0.5]
        for budget in budgets:
            with pytest.raises(ValueError, match="max_bytes"):
                next(upsampler.tiles(image, features, max_bytes=budget))

    def test_wrong_width(self) -> None:
        if not needs_feature_dim(self.name):
            return
        image, features = self.inputs(channels=self.channels[0] + 8)
        with pytest.raises(ValueError, match="feature_dim"):
            self.build()(image, features)
        with pytest.raises(ValueError, match="feature_dim"):
            upfeat.create_upsampler(self.name, **self.config)

    def test_grid_below_the_smallest(self) -> None:
        for axis in range(2):
            if self.smallest_grid[axis] > 1:
                grid = list(self.grid)
                grid[axis] = self.smallest_grid[axis] - 1
                image, features = self.inputs(grid=(grid[0], grid[1]))
                with pytest.raises(ValueError, match="grid"):
                    self.build()(image, features)

    def test_unknown_argument(self) -> None:
        with pytest.raises(TypeError, match="no_such_option"):
            self.build(no_such_option=1)

    # -- compile and export ------------------------------------------------------------------------

    @pytest.mark.compile
    @torch.no_grad()
    def test_compile(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        torch._dynamo.reset()
        compiled = torch.compile(upsampler, fullgraph=True, backend="aot_eager")
        if upsampler.info.abilities.compile:
            expected = upsampler(image, features)
            torch.testing.assert_close(compiled(image, features), expected, atol=5e-5, rtol=1e-4)
        elif torch.__version__.startswith("2.6."):
            pytest.skip("PyTorch 2.6 may run what it cannot trace without compiling it")
        else:
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"traced by torch\.compile"):
                compiled(image, features)

    @pytest.mark.export
    @torch.no_grad()
    def test_export(self) -> None:
        image, features = self.inputs()
        upsampler = self.build()
        if upsampler.info.abilities.export.torch != "no":
            program = torch.export.export(upsampler, (image, features), strict=False)
            expected = upsampler(image, features)
            actual = program.module()(image, features)
            torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)
        else:
            with pytest.raises(UnsupportedError, match=r"traced by torch\.export"):
                torch.export.export(upsampler, (image, features), strict=False)
