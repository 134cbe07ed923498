"""Networks of the package transformers (Apache-2.0), read from a local folder.

The folder is as ``save_pretrained`` writes it; nothing is downloaded.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from upfeat._compat import ensure_torchvision_operators
from upfeat.checkpoints import file_sha256, read_config
from upfeat.errors import CheckpointError, WeightsNotFoundError, import_optional


class NetworkFolder:
    """A folder with ``config.json`` and ``model.safetensors``.

    Args:
        folder: where it is.
        what: it holds, for messages.
        kinds: transformers' model types that will do.
        address: where there is such a folder.

    Attributes:
        config: of the network.
        kind: its model type.

    Raises:
        WeightsNotFoundError: the folder holds no weights.
        CheckpointError: they are of another kind.
    """

    def __init__(self, folder: Path, what: str, kinds: Collection[str], address: str) -> None:
        self.folder = folder.expanduser()
        self.files = sorted(self.folder.glob("*.safetensors"))
        if not (self.folder / "config.json").is_file() or not self.files:
            raise WeightsNotFoundError(
                f"no {what} in {self.folder}: expected config.json and model.safetensors, as in "
                f"{address}"
            )
        self.config = read_config(self.folder / "config.json")
        self.kind = str(self.config.get("model_type"))
        if self.kind not in kinds:
            raise CheckpointError(
                f"{self.folder} holds a model of type {self.kind!r}, expected "
                f"{' or '.join(map(repr, kinds))}"
            )

    def hashes(self) -> list[str]:
        """Return the SHA-256 of each file of weights."""
        return [file_sha256(file) for file in self.files]

    def load(self, network: str, use: str, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the network, frozen; every weight must come from the files.

        Args:
            network: its class in transformers.
            use: what it is for, for the message where transformers is not installed.
            device: where it goes.
            dtype: of its weights.

        Raises:
            MissingPackageError: transformers is not installed.
            CheckpointError: the weights do not fit.
        """
        ensure_torchvision_operators()  # transformers imports torchvision
        transformers = import_optional("transformers", "transformers", "sam", use)
        try:
            with _quiet(transformers.logging):
                model, report = getattr(transformers, network).from_pretrained(
                    self.folder,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.folder} cannot be loaded: {error}") from error
        if lacking := {*report["missing_keys"], *report["mismatched_keys"]}:
            raise CheckpointError(
                f"{self.folder} lacks weights of {type(model).__name__}: "
                f"{sorted(map(str, lacking))[:5]}"
            )
        return model.to(device, dtype).eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Files may hold more than the network; the warnings about it are expected."""
    old, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(old)
        if bar:
            log.enable_progress_bar()
