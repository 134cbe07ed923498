"""A frozen backbone that computes the features of each training image only once."""

from pathlib import Path

from torch import Tensor

from upfeat.backbones import Backbone
from upfeat.data import FeatureCache
from upfeat.data.feature_cache import weights_fingerprint
from upfeat.errors import UnsupportedError

__all__ = ["CachedBackbone"]


class CachedBackbone(Backbone):
    """A backbone with its features on disk, as float16, for images of one size.

    Images of other sizes (the small image of a random factor, crops) are computed each time: they
    do not come again. Features come without gradients.

    Args:
        backbone: what computes.
        folder: of the cache.
        size: (H, W) of the images whose features are kept.
        options: what the backbone was built with; a part of the cache's key.

    Attributes:
        cache: the files, with counts of hits and misses.

    Example:
        >>> import tempfile, torch, upfeat
        >>> from upfeat.training import CachedBackbone
        >>> pool = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached = CachedBackbone(pool, folder, (32, 32), {})
        ...     image = torch.rand(2, 3, 32, 32)
        ...     torch.equal(cached(image), cached(image)), cached.cache.hits, cached.cache.misses
        (True, 2, 2)
    """

    def __init__(
        self,
        backbone: Backbone,
        folder: str | Path,
        size: tuple[int, int],
        options: dict[str, str | int | float | bool | None],
    ) -> None:
        super().__init__(
            name=backbone.name,
            dim=backbone.dim,
            patch_size=backbone.patch_size,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            size_multiple=backbone.size_multiple,
            layer=backbone.layer,
            fixed_size=backbone.fixed_size,
        )
        self.size = size
        self.backbone = backbone
        weights = weights_fingerprint(backbone.state_dict())
        key = {"backbone": backbone.name, "weights": weights} | options
        self.cache = FeatureCache(folder, key)
        self.freeze()

    def reserve(self, images: int) -> None:
        """Log the size that the cache will have, and refuse one that does not fit on the disk.

        Raises:
            ValueError: more would be needed than is free.
        """
        self.cache.reserve(images, self.dim, self.grid_size(self.size))

    def _extract(self, image: Tensor) -> Tensor:
        if tuple(image.shape[-2:]) != self.size:
            return self.backbone(image)
        if image.requires_grad:
            raise UnsupportedError(
                f"features of {self.name} from a cache have no gradient to the image; train "
                "without data.feature_cache"
            )
        return self.cache(image, self.backbone)
