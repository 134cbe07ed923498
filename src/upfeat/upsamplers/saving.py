"""What a model records of itself, how it is saved and loaded, how its guidance is normalised."""

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from upfeat.errors import CheckpointError, warn_user
from upfeat.layers.raw_images import warn_of_raw_image
from upfeat.ops.images import normalize
from upfeat.ops.principal import three_channels
from upfeat.ops.runtime import wants_reference
from upfeat.upsamplers.cards import CardScore, check_licence, licence_id
from upfeat.upsamplers.files import load_folder, save_folder
from upfeat.upsamplers.hub import push_folder
from upfeat.upsamplers.weights import TrainedFor, UpsamplerInfo

if TYPE_CHECKING:
    from upfeat.backbones.base import Backbone

__all__ = ["GuidedModel", "SavedModel"]


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``__init__`` so that the outermost call's arguments, defaults included, are kept."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: "SavedModel", *args: Any, **kwargs: Any) -> None:
        outermost = "config" not in self.__dict__
        if outermost:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            arguments.pop(next(iter(signature.parameters)))
            self.__dict__["config"] = arguments
        init(self, *args, **kwargs)
        if outermost:
            self.__dict__["_built"] = True

    return wrapper


class SavedModel(nn.Module):
    """A module that keeps the arguments it was built with, and is saved and loaded by them.

    Attributes:
        info: what the method is.
        config: the arguments it was built with, as ``save_pretrained`` stores them. An attribute
            that is one of them, such as the ``detail`` of KIN, is changed here when it is set.
        trained_for: the backbone that the weights belong to; None where none is known or any will
            do.
        official_globals: foreign classes that the method's official pickles may name.
        official_keys: keys under which official files nest the state dict.
        official_parts: keys under which official files hold several state dicts side by side, whose
            tensors keep them as prefixes.
    """

    info: UpsamplerInfo
    config: dict[str, Any]
    trained_for: TrainedFor | None = None
    official_globals: ClassVar[tuple[Any, ...]] = ()
    official_keys: ClassVar[tuple[str, ...]] = ()
    official_parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Record constructor arguments of every subclass."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def __init__(self) -> None:
        self.__dict__.setdefault("config", {})
        super().__init__()
        if hasattr(type(self), "info"):
            # The licence that the method's authors gave is that of their weights, not of new ones.
            self.info = dataclasses.replace(self.info, weights_license=None)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; if it is an argument as it was given, in ``config`` as well."""
        own = self.__dict__
        if "_built" in own and name in own and name in own["config"]:
            # Under that name something else may be kept, such as a tensor.
            kept, given = own[name], own["config"][name]
            if type(kept) is type(given) and kept == given:
                own["config"] = own["config"] | {name: value}
        super().__setattr__(name, value)

    # -- official files --------------------------------------------------------------------------

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read constructor arguments from the shapes of an official state dict."""
        raise CheckpointError(f"{cls.info.name} has no official weight files")

    @classmethod
    def convert_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map an official state dict to this class's keys."""
        return dict(state)

    # -- own files -------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        card: str | None = None,
        backbone: "Backbone | None" = None,
        license: str | None = None,
        scores: Sequence[CardScore] = (),
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        Args:
            folder: created if need be.
            card: text of the model card (``README.md``); default: made from ``info`` and
                the configuration. Front matter for the hub is put before it. A card that was
                written or changed by hand is kept.
            backbone: what the weights were trained for, unless they serve any; default: what
                ``trained_for`` says. ``config.json`` names it with layer and normalisation, and
                ``guidance_image`` of the loaded upsampler warns of another.
            license: of your weights, as the hub spells it (``"apache-2.0"``, ``"cc-by-nc-4.0"``,
                …). By default that of published weights, which stays with them; of others the card
                says ``unknown``.
            scores: numbers of the model, for the card.

        Raises:
            UnknownNameError: the hub knows no such licence.
            ForeignFileError: the folder holds weights or a ``config.json`` that upfeat did not
                write.

        Example:
            >>> import tempfile, upfeat
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     upfeat.create_upsampler("jafar", feature_dim=16, qk_dim=32).save_pretrained(
            ...         folder
            ...     )
            ...     upfeat.Upsampler.from_pretrained(folder).config["feature_dim"]
            16
        """
        trained_for = self.trained_for if backbone is None else TrainedFor.of(backbone)
        universal = self.info.abilities.universal
        if license is not None:
            stated = check_licence(license)
            self.info = dataclasses.replace(self.info, weights_license=stated)
        save_folder(self, Path(folder), card, None if universal else trained_for, scores)

    def push_to_hub(
        self,
        repository: str,
        *,
        license: str | None = None,
        backbone: "Backbone | None" = None,
        card: str | None = None,
        scores: Sequence[CardScore] = (),
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload with upfeat",
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub, as one commit.

        Args:
            repository: ``"me/name"``, or ``"name"`` for one of your own; created if need be. One
                that upfeat wrote is updated, its history keeps the former files.
            license: of your weights, as in :meth:`save_pretrained`; a warning says if none is
                known.
            backbone: as in :meth:`save_pretrained`.
            card: as in :meth:`save_pretrained`.
            scores: as in :meth:`save_pretrained`.
            private: whether a new repository is private; None for your account's default.
            token: access token; default: the one you logged in with (``hf auth login``).
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            HubError: there is no token, it may not write there, the hub cannot be reached, or the
                repository holds files of something else.
            UnknownNameError: the hub knows no such licence.
            ValueError: it is no name of a repository.
        """
        if license is None and licence_id(self.info.weights_license) == "unknown":
            warn_user(
                f"no licence is stated for these weights of {self.info.name}, so the card says "
                'unknown; give license="apache-2.0" or another id of the hub'
            )
        saving = {"card": card, "backbone": backbone, "license": license, "scores": scores}
        return push_folder(self, repository, saving, token=token, private=private, message=message)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Load what :meth:`save_pretrained` wrote, from a folder or a Hugging Face repository.

        Args:
            folder_or_id: a folder (of a model, or of the run that trained it), or a repository id
                such as ``"user/name"``.
            device: where the model goes; None: the CPU.
            dtype: its floating point type; None: float32.
            **hub: passed to ``huggingface_hub.snapshot_download`` (``revision``, ``token``, …).

        Raises:
            WeightsNotFoundError: neither a folder nor a reachable repository.
            CheckpointError: the files do not fit, or hold a method other than this class.
        """
        model = load_folder(folder_or_id, **hub)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"{folder_or_id} holds a {type(model).__name__}, not a {cls.__name__}; "
                "load it with upfeat.Upsampler.from_pretrained"
            )
        return model.to(device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Show the configuration in ``print(upsampler)``."""
        return json.dumps(self.config, default=str)


class GuidedModel(SavedModel):
    """A method that is guided by an image, and may have been trained for one backbone."""

    def __init__(self) -> None:
        super().__init__()
        self._warned_of: set[str] = set()

    def guidance_statistics(self, backbone: "Backbone") -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and deviation of the guidance: the method's own, else the backbone's."""
        if self.info.image_mean is None or self.info.image_std is None:
            return backbone.image_mean, backbone.image_std
        return self.info.image_mean, self.info.image_std

    def guidance_image(self, image: Tensor, backbone: "Backbone | None" = None) -> Tensor:
        """Normalise an image as this upsampler wants its guidance.

        Warns, once for each, of a backbone that the weights were not trained for.

        Args:
            image: (B, 3, H, W), RGB in [0, 1]; or (B, N, H, W) with any other number of channels
                in any units, which :func:`upfeat.ops.principal.three_channels` brings to three.
            backbone: whose features are upsampled; its normalisation counts where the method has
                none of its own. None for values that no backbone computed, such as coarse bands.

        Returns:
            (B, 3, H, W), what :meth:`forward` takes as ``image``.

        Raises:
            ValueError: without a backbone, a method has no normalisation of its own.

        Example:
            >>> import torch, upfeat
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> bands, guide = torch.rand(1, 7, 4, 4), torch.rand(1, 16, 64, 64)  # no RGB at all
            >>> up(up.guidance_image(guide), bands).shape
            torch.Size([1, 7, 64, 64])
        """
        if image.dim() == 4 and image.shape[1] != 3:
            image = three_channels(image)
        if backbone is not None:
            self.warn_of_other_backbone(backbone)
            return normalize(image, *self.guidance_statistics(backbone))
        if self.info.image_mean is None or self.info.image_std is None:
            raise ValueError(
                f"{self.info.name} takes its guidance normalised as for the backbone: give the "
                "backbone, guidance_image(image, backbone)"
            )
        return normalize(image, self.info.image_mean, self.info.image_std)

    def prepare(self, image: Tensor, backbone: "Backbone") -> tuple[Tensor, Tensor]:
        """Normalise an image for the backbone and for this upsampler, whose wishes may differ.

        Args:
            image: (B, 3, H, W), RGB in [0, 1], sides multiples of ``backbone.size_multiple``.
            backbone: whose features are upsampled.

        Returns:
            ``(pixels, guidance)``, each (B, 3, H, W): for ``backbone(pixels)`` and
            ``upsampler(guidance, features)``.

        Example:
            >>> import torch, upfeat
            >>> encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
            >>> up = upfeat.create_upsampler("kin.upfeat")
            >>> pixels, guidance = up.prepare(torch.rand(1, 3, 32, 48), encoder)
            >>> up(guidance, encoder(pixels)).shape
            torch.Size([1, 192, 32, 48])
        """
        pixels = normalize(image, backbone.image_mean, backbone.image_std)
        return pixels, self.guidance_image(image, backbone)

    def _warn_of_raw_image(self, image: Tensor) -> None:
        """Warn of guidance without normalisation, where it is known which it should have."""
        known = self.info if self.info.image_mean is not None else self.trained_for
        if known is not None and known.image_mean is not None and known.image_std is not None:
            name = self.info.name
            warn_of_raw_image(self._warned_of, image, known.image_mean, known.image_std, name)

    def accept_backbone(self, backbone: "Backbone") -> None:
        """Take features of a backbone that the weights were not trained for, without a warning."""
        self._warned_of.add(backbone.name)

    def warn_of_other_backbone(self, backbone: object) -> None:
        """Warn once of a backbone that the weights were not trained for, where that is known."""
        name = getattr(backbone, "name", None)
        known = self.trained_for is not None and not self.info.abilities.universal
        if not known or name is None or name in self._warned_of or wants_reference():
            return
        difference = cast(TrainedFor, self.trained_for).difference(cast("Backbone", backbone))
        if difference is not None:
            self._warned_of.add(name)
            warn_user(
                f"the weights of {self.info.name} were trained for {difference}: these features "
                "mean something else to it; load weights of this backbone, or train it with "
                "upfeat train"
            )
