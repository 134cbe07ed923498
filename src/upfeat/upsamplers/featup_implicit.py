"""FeatUp's implicit upsampler: a small network for one image, fitted to views of it.

Paper: Fu, Hamilton, Brandt, Feldman, Zhang, Freeman, "FeatUp: A Model-Agnostic Framework for
Features at Any Resolution", ICLR 2024, arXiv 2403.10516. Original: github.com/mhamilton723/FeatUp
(MIT). No weights are published: there are none before there is an image.

The network takes Fourier features of a pixel's place and colour (section 3.3) and gives its
feature, in the space of the first principal components. It is fitted so that its map, moved as a
view of the image was and reduced by a learned downsampler, is the backbone's map of that view:

    mean(|D(t(F)) - f(t(I))|^2 / (2 s^2) + log s) + 0.001 mean((D(|t(F)|) - |f|)^2)
        + 0.05 TV(|F|) + 0.1 mean((blur(F) - F)^2)

Legend: B batch, C feature channels, d principal components, H W image, h w feature grid, V views.
"""

import copy
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import shape_text
from upfeat.layers.downsamplers import AttentionDownsampler, ScaleNet, uncertain_error
from upfeat.layers.fourier import FourierFeatures
from upfeat.ops import magnitude
from upfeat.ops.coordinates import inclusive_grid, inclusive_places, sample_at
from upfeat.ops.images import Crop, Size, draw_crop, gaussian_blur, take_crop, total_variation
from upfeat.ops.runtime import DrawsFrom
from upfeat.upsamplers.base import NO_EXPORT, Abilities, UpsamplerInfo
from upfeat.upsamplers.fitted import FittedUpsampler
from upfeat.upsamplers.registry import register_upsampler

logger = logging.getLogger(__name__)

MAGNITUDE_WEIGHT, SMOOTH_WEIGHT, BLUR_WEIGHT = 0.001, 0.05, 0.1
PCA_VIEWS, PCA_ITERATIONS = 50, 4
WIDE_KERNEL, WIDE_PATCH = 29, 14  # published kernels: 29 for patches of 14 and 16, 8 for 8
THUMBNAIL = 8  # side of the picture by which a fitted network knows its image
SAME_IMAGE = 0.05  # largest difference of thumbnails of one image, in normalised colours
DROPOUT = 0.2


class Network(nn.Module):
    """Place and colour of pixels to d channels: two hidden 1x1 layers."""

    def __init__(self, dim: int, n_freqs: int, color_feats: bool) -> None:
        super().__init__()
        width = 10 * n_freqs + 3 if color_feats else 4 * n_freqs
        self.color_feats = color_feats
        self.fourier = FourierFeatures(5 if color_feats else 2, n_freqs)
        self.norm_in = nn.LayerNorm(width)
        self.conv1 = nn.Conv2d(width, dim, 1)
        self.norm_hidden = nn.LayerNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.conv3 = nn.Conv2d(dim, dim, 1)

    def forward(
        self, places: Tensor, colors: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B, 2, H, W) and (B, 3, H, W), float32 at least -> (B, d, H, W).

        The generator, on the CPU, is that of the dropout of whole channels; None switches it off.
        """
        if self.color_feats:
            x = torch.cat((self.fourier(torch.cat((places, colors), 1)), colors), 1)
        else:
            x = self.fourier(places)
        x = _normed(self.norm_in, x.to(self.conv1.weight.dtype))
        x = _dropped(x, generator)
        x = _dropped(self.conv1(x).relu(), generator)
        return self.conv3(self.conv2(_normed(self.norm_hidden, x)).relu())


def _dropped(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Dropout of whole channels of (B, C, H, W), drawn on the CPU."""
    if generator is None:
        return x
    kept = torch.empty(*x.shape[:2], 1, 1, dtype=x.dtype, device=generator.device)
    kept.bernoulli_(1 - DROPOUT, generator=generator).div_(1 - DROPOUT)
    return x * kept.to(x.device)


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm over the channels of (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def fitting_terms(output: Tensor, log_scale: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """What views (V, d, h, w) ask of the map, moved and reduced: (V, 1 + d, h, w), norm first."""
    reconstruction = uncertain_error((output[:, 1:] - target).square(), log_scale)
    return reconstruction, F.mse_loss(output[:, :1], magnitude(target))


def smoothness_terms(fine: Tensor) -> tuple[Tensor, Tensor]:
    """What is asked of the map (1, d, H, W) alone: variation of its magnitude, roughness."""
    return total_variation(magnitude(fine)), F.mse_loss(gaussian_blur(fine, 1.0), fine)


# Official index in the sequential network -> ours.
_KEYS = {
    "1.biases": "network.fourier.phases",
    "2.norm.": "network.norm_in.",
    "4.": "network.conv1.",
    "7.norm.": "network.norm_hidden.",
    "8.": "network.conv2.",
    "10.": "network.conv3.",
}


class Fitted(NamedTuple):
    """The networks of a batch of images, and their colours at the output's size."""

    models: list["FeatUpImplicit"]
    colors: Tensor  # (B, 3, H', W')


@register_upsampler("featup_implicit")
class FeatUpImplicit(FittedUpsampler):
    """FeatUp's implicit upsampler (arXiv 2403.10516, section 3.3), optimised for each image.

    A fresh instance fits a network to every image it is called with, and keeps none; all draws
    come from ``seed``. :meth:`fit` keeps the network of one image: calls then only render, and
    :meth:`save_pretrained` stores it. Views of the image need the backbone: give it to
    :meth:`with_backbone` (``upfeat.Pipeline`` does). Without it the given features are the only
    view, which is quick and far weaker than the method.

    Args:
        feature_dim: C.
        pca_dim: d, principal components that the network regresses.
        n_freqs: frequencies of the Fourier features.
        color_feats: whether the network sees colours beside places.
        views: jittered copies of the image that pass the backbone once each.
        steps: of the optimiser (NAdam).
        views_per_step: drawn for each step.
        lr: learning rate.
        max_pad: how many mirrored pixels a view may show.
        max_zoom: of a view.
        kernel_size: of the downsampler; None for the published ones: 29 for patches of 14 pixels
            and more, else the patch.
        seed: of everything that is drawn.
        progress: show a progress bar.

    Example:
        >>> import torch, upfeat
        >>> up = upfeat.create_upsampler("featup_implicit", feature_dim=3, steps=2, views=4)
        >>> up = up.with_backbone(lambda image: torch.nn.functional.avg_pool2d(image, 8))
        >>> up(torch.randn(1, 3, 32, 40), torch.randn(1, 3, 4, 5), (16, 20)).shape
        torch.Size([1, 3, 16, 20])
    """

    info = UpsamplerInfo(
        name="featup_implicit",
        summary="A network of place and colour, fitted to jittered views of each image.",
        when=(
            "You have few images, no training set, and minutes to hours for each image; or you "
            "compare with FeatUp."
        ),
        claim="A network fitted to jittered views of one image gives features at any resolution.",
        as_baseline={
            "LoftUp": "without PCA (303 to 384 channels, +0.4 M parameters; read from the count)",
        },
        paper="FeatUp: A Model-Agnostic Framework for Features at Any Resolution",
        year=2024,
        arxiv="2403.10516",
        code="https://github.com/mhamilton723/FeatUp",
        code_license="MIT",
        abilities=Abilities(
            mixes_values=False,
            universal=True,
            per_image=True,
            tiles=True,
            query=True,
            gradients=False,
            compile=False,
            export=NO_EXPORT,
        ),
        views=True,
    )
    short_fit: ClassVar = {"steps": 12, "views": 12, "views_per_step": 1, "pca_dim": 16}
    fitted: Tensor
    thumbnail: Tensor
    components: Tensor
    singular_values: Tensor
    mean: Tensor

    official_parts = ("model", "unprojector")

    def __init__(
        self,
        feature_dim: int,
        pca_dim: int = 128,
        n_freqs: int = 30,
        color_feats: bool = True,
        views: int = 3000,
        steps: int = 1200,
        views_per_step: int = 10,
        lr: float = 2e-3,
        max_pad: int = 30,
        max_zoom: float = 1.8,
        kernel_size: int | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if min(pca_dim, views, steps, views_per_step, n_freqs) < 1 or lr <= 0:
            raise ValueError(
                "pca_dim, views, steps, views_per_step, n_freqs and lr must be positive, got "
                f"{pca_dim}, {views}, {steps}, {views_per_step}, {n_freqs} and {lr}"
            )
        if max_pad < 0 or max_zoom < 1:
            raise ValueError(f"max_pad={max_pad} must be at least 0, max_zoom={max_zoom} 1")
        self.views, self.steps, self.views_per_step, self.lr = views, steps, views_per_step, lr
        self.max_pad, self.max_zoom, self.kernel_size = max_pad, max_zoom, kernel_size
        self.seed, self.progress = seed, progress
        self.network = Network(pca_dim, n_freqs, color_feats)
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("thumbnail", torch.full((3, THUMBNAIL, THUMBNAIL), torch.nan))
        self.register_buffer("components", torch.zeros(pca_dim, feature_dim))
        self.register_buffer("singular_values", torch.zeros(pca_dim))
        self.register_buffer("mean", torch.zeros(feature_dim))

    # -- fitting -----------------------------------------------------------------------------------

    def fit(self, image: Tensor, features: Tensor) -> Self:
        """Fit the network to one image and keep it: from now on calls render, and nothing else.

        Args:
            image: (1, 3, H, W), normalised as for the backbone.
            features: (1, C, h, w), the backbone's map of it.

        Raises:
            ValueError: not one image, or its features do not fit.

        Example:
            >>> import torch, upfeat
            >>> up = upfeat.create_upsampler("featup_implicit", feature_dim=8, steps=2, n_freqs=3)
            >>> image, features = torch.randn(1, 3, 32, 40), torch.randn(1, 8, 4, 5)
            >>> up.fit(image, features).query(image, features, torch.zeros(1, 1, 2)).shape
            torch.Size([1, 1, 8])
        """
        if len(image) != 1:
            raise ValueError(f"fit takes one image, got a batch of {len(image)}; call it for each")
        self.fitted.fill_(False)
        self._check(image, features, (image.shape[2], image.shape[3]), None)
        image, features, _ = self._cast(image, features, None)
        self.load_state_dict(self._fit(image, features).state_dict())
        return self

    def _fit(self, image: Tensor, features: Tensor) -> "FeatUpImplicit":
        """Return a copy that is fitted to one image, whatever modes are on around it."""
        draws = torch.Generator().manual_seed(self.seed)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(image.device.type, enabled=False),
        ):
            with DrawsFrom(draws):
                own = type(self)(**self.config).to(image.device)
            own.__dict__["_backbone"] = self.__dict__["_backbone"]
            # Contiguous copies: the fit must not depend on how the inputs lie in memory.
            picture, cells = (
                x.detach().float().clone(memory_format=torch.contiguous_format)
                for x in (image, features)
            )
            own._optimise(picture, cells, draws)
        return own.to(self.mean.dtype).eval()

    def _optimise(self, image: Tensor, features: Tensor, draws: torch.Generator) -> None:
        """Fit to one image; ``draws`` are those of weights and channels, views have their own."""
        generator = torch.Generator().manual_seed(self.seed)
        size, grid = (image.shape[2], image.shape[3]), (features.shape[2], features.shape[3])
        pad = min(self.max_pad, min(size) - 1)
        views = self._views(image, features, pad, generator, draws)
        dim = len(self.components)
        with DrawsFrom(draws):
            downsampler = AttentionDownsampler(dim + 1, self._kernel(size, grid), blur=False)
            scale = ScaleNet(dim)
        parts = nn.ModuleList((self.network, downsampler, scale)).to(image.device).train()
        optimizer = torch.optim.NAdam(parts.parameters(), lr=self.lr)
        places, colors = inclusive_grid(size, image.device)[None], self.colors(image)
        for _ in self._track(range(self.steps), "fitting"):
            optimizer.zero_grad(set_to_none=True)
            fine = self.network(places, colors, draws)  # (1, d, H, W)
            both = torch.cat((magnitude(fine), fine), dim=1)
            # Views one by one: the gradient of the shared map is collected in a leaf.
            leaf = both.detach().requires_grad_()
            drawn = torch.randint(len(views), (self.views_per_step,), generator=generator)
            for index in drawn.tolist():
                crop, target = views[index]
                moved = take_crop(leaf, crop, pad)
                output = downsampler(moved, generator, output_size=grid)
                terms = fitting_terms(output, scale.log(target), target)
                loss = terms[0] + MAGNITUDE_WEIGHT * terms[1]
                (loss / self.views_per_step).backward()
            variation, roughness = smoothness_terms(fine)
            smooth = SMOOTH_WEIGHT * variation + BLUR_WEIGHT * roughness
            torch.autograd.backward([both, smooth], [leaf.grad, torch.ones_like(smooth)])
            optimizer.step()
        self.fitted.fill_(True)
        self.thumbnail.copy_(F.adaptive_avg_pool2d(image, THUMBNAIL)[0])

    def _views(
        self,
        image: Tensor,
        features: Tensor,
        pad: int,
        generator: torch.Generator,
        draws: torch.Generator,
    ) -> list[tuple[Crop, Tensor]]:
        """Crops with their targets (1, d, h, w), the image first; sets the principal components."""
        size = (image.shape[2], image.shape[3])
        crops = [draw_crop(generator, size, pad, self.max_zoom) for _ in range(self.views)]
        crops[0] = Crop(row=pad, column=pad)
        if self.__dict__["_backbone"] is None:
            logger.warning("featup_implicit has no backbone: the only view is the image itself")
            crops = crops[:1]
        maps = itertools.chain((features,), self._seen(image, features, crops[1:], pad))
        with torch.no_grad():
            first = list(itertools.islice(maps, PCA_VIEWS))
            self._find_components(torch.cat(first), draws)
            targets = [self.project(x) for x in itertools.chain(first, maps)]
        return list(zip(crops, targets, strict=True))

    def _seen(
        self, image: Tensor, features: Tensor, crops: Sequence[Crop], pad: int
    ) -> Iterator[Tensor]:
        """The backbone's maps of moved copies, one after the other."""
        for crop in self._track(crops, "views"):
            seen = self.__dict__["_backbone"](take_crop(image, crop, pad))
            if seen.shape != features.shape:
                raise ValueError(
                    f"the backbone gives {shape_text(seen)} for a view, expected "
                    f"{shape_text(features)}; give the one that made the features"
                )
            yield seen.to(features)

    def _find_components(self, maps: Tensor, draws: torch.Generator) -> None:
        """PCA of all cells of some maps (V, C, h, w)."""
        samples = maps.permute(0, 2, 3, 1).flatten(0, 2)  # (V h w, C)
        count = min(len(self.components), *samples.shape)
        with DrawsFrom(draws):
            _, values, vectors = torch.pca_lowrank(samples, q=count, niter=PCA_ITERATIONS)
        self.mean.copy_(samples.mean(0))
        self.components[:count] = vectors.T
        self.singular_values[:count] = values

    def _kernel(self, size: Size, grid: Size) -> int:
        patch = min(side // cells for side, cells in zip(size, grid, strict=True))
        kernel = self.kernel_size or (WIDE_KERNEL if patch >= WIDE_PATCH else max(patch, 1))
        most = min(side - cells + 1 for side, cells in zip(size, grid, strict=True))
        return min(kernel, most)  # windows must start at different pixels

    def _track(self, items: Sequence[Any], what: str) -> Iterator[Any]:
        if not self.progress:
            return iter(items)
        from rich.progress import track

        return iter(track(items, description=f"featup_implicit: {what}"))

    # -- rendering ---------------------------------------------------------------------------------

    def project(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to principal components (B, d, h, w)."""
        centred = features - self.mean[:, None, None]
        return torch.einsum("bchw,dc->bdhw", centred, self.components)

    def unproject(self, components: Tensor) -> Tensor:
        """(B, d, H, W) back to features (B, C, H, W)."""
        return torch.einsum("bdhw,dc->bchw", components, self.components) + self.mean[:, None, None]

    def colors(self, image: Tensor) -> Tensor:
        """Scale each colour of (B, 3, H, W) to [-0.5, 0.5] over the image."""
        low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
        return (image - low) / (high - low).clamp(min=1e-4) - 0.5

    def _check(
        self, image: Tensor, features: Tensor, output_size: Size, values: Tensor | None
    ) -> None:
        super()._check(image, features, output_size, values)
        pairs = zip(image.shape[2:], features.shape[2:], strict=True)
        if any(side < max(cells, 3) for side, cells in pairs):
            raise ValueError(
                f"image {shape_text(image)} must have at least 3x3 pixels and one for each cell of "
                f"features {shape_text(features)}; take the image that the backbone saw"
            )
        if bool(self.fitted) and not bool(self.thumbnail.isnan().any()):
            seen = F.adaptive_avg_pool2d(image.to(self.thumbnail), THUMBNAIL)
            if len(image) != 1 or (seen[0] - self.thumbnail).abs().mean() > SAME_IMAGE:
                raise ValueError(
                    "this featup_implicit is fitted to another image; build a new one, which fits "
                    "each image that it is called with"
                )

    def _cast(
        self, image: Tensor, features: Tensor, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the image in float32 at least: its rounding is amplified by the frequencies."""
        kept = image.to(torch.promote_types(image.dtype, torch.float32))
        return kept, features, features

    def encode(self, image: Tensor, features: Tensor, output_size: Size) -> Fitted:
        """Fit a network to each image, unless one is fitted, and bring the colours to the size."""
        colors = self.colors(image)
        if image.shape[2:] != output_size:
            colors = F.interpolate(colors, output_size, mode="bilinear")
        return Fitted(self._models(image, features), colors)

    def decode(self, state: Fitted, values: Tensor, rows: slice) -> Tensor:
        """Ask each image's network for the pixels of the rows."""
        colors = state.colors[:, :, rows]  # (B, 3, R, W')
        size = (state.colors.shape[2], state.colors.shape[3])
        places = inclusive_grid(size, colors.device, rows).to(colors.dtype)[None]
        return _rendered(state.models, [places] * len(colors), colors)

    def decode_at(self, state: Fitted, values: Tensor, coords: Tensor) -> Tensor:
        """Ask each image's network for its positions."""
        colors = sample_at(state.colors, coords).mT[..., None]  # (B, 3, N, 1)
        size = (state.colors.shape[2], state.colors.shape[3])
        places = inclusive_places(coords, size).to(colors.dtype).mT[..., None]  # (B, 2, N, 1)
        found = _rendered(state.models, places.split(1), colors)
        return found[..., 0].mT  # (B, C, N, 1) -> (B, N, C)

    def row_floats(self, features: Tensor, values: Tensor, output_size: Size) -> int:
        """Count the network's inputs on their way, its hidden maps, and features with copies."""
        channels = 8 * self.network.norm_in.normalized_shape[0] + 4 * len(self.components)
        return output_size[1] * (channels + 4 * features.shape[1])

    def _models(self, image: Tensor, features: Tensor) -> list["FeatUpImplicit"]:
        """A fitted model for each image, in evaluation mode."""
        if bool(self.fitted):
            return [self if not self.training else copy.deepcopy(self).eval()] * len(image)
        return [self._fit(*pair) for pair in zip(image.split(1), features.split(1), strict=True)]

    # -- official files ----------------------------------------------------------------------------

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the sizes of a network, with its principal components or without."""
        own = cls.convert_official(state)
        inputs, freqs = own["network.fourier.phases"].shape[1:]
        dim, width = own["components"].shape
        return {"feature_dim": width, "pca_dim": dim, "n_freqs": freqs, "color_feats": inputs == 5}

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map the file of one image: ``model.*`` and ``unprojector.*``, or the network alone.

        A state dict of ours passes through.
        """
        if "network.conv3.bias" in state:
            return dict(state)
        own: dict[str, Tensor] = {}
        for key, value in state.items():
            key = key.removeprefix("model.")
            for official, ours in _KEYS.items():
                if key.startswith(official):
                    own[ours + key.removeprefix(official)] = value
        dim = own["network.conv3.bias"].shape[0]
        own["components"] = state.get("unprojector.components_", torch.eye(dim))
        own["singular_values"] = state.get("unprojector.singular_values_", torch.zeros(dim))
        centre = torch.zeros(own["components"].shape[1])
        own["mean"] = state.get("unprojector.mean_", centre).flatten()
        own["fitted"] = torch.tensor(True)
        own["thumbnail"] = torch.full((3, THUMBNAIL, THUMBNAIL), torch.nan)  # of any image
        return own


def _rendered(models: Sequence[FeatUpImplicit], places: Sequence[Tensor], colors: Tensor) -> Tensor:
    """Ask each model for places (1, 2, R, W) with colours (B, 3, R, W): (B, C, R, W)."""
    parts = [
        model.unproject(model.network(place, color[None]))
        for model, place, color in zip(models, places, colors, strict=True)
    ]
    return torch.cat(parts)
