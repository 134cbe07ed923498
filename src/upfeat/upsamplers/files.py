"""Files of weights: official ones, those of the package, and folders of our own layout."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

import upfeat
from upfeat._files import OwnFiles
from upfeat.checkpoints import (
    find_weights,
    load_strictly,
    read_checkpoint,
    read_config,
    some_names,
    unwrap_state,
    write_safetensors,
)
from upfeat.errors import (
    CheckpointError,
    ForeignFileError,
    WeightsNotFoundError,
    check_normalization,
)
from upfeat.upsamplers.cards import (
    CARD_FILE,
    CONFIG_FILE,
    LICENCE_IDS,
    OWN_FIELDS,
    WEIGHTS_FILE,
    CardScore,
    card_for,
    check_licence,
    split_card,
)
from upfeat.upsamplers.hub import download_folder
from upfeat.upsamplers.registry import get_class
from upfeat.upsamplers.weights import Checkpoint, TrainedFor

if TYPE_CHECKING:
    from upfeat.upsamplers.saving import SavedModel

logger = logging.getLogger(__name__)

MAKER = "save_pretrained"
# In the folder of a training run.
RUN_LOG = "log.csv"
RUN_MODEL = "model"

ModelType = TypeVar("ModelType", bound="SavedModel")


def load_checkpoint(
    cls: type[ModelType],
    record: Checkpoint,
    file: str | os.PathLike[str] | None,
    config: Mapping[str, Any],
) -> ModelType:
    """Find the file of a record, load it, and narrow ``info`` to what the record says."""
    what = f"{cls.info.name}.{record.tag}"
    with _open_weights(what, record, record.local_names(cls.info.name), file) as path:
        if record.ours and file is None:
            model = _load_ours(cls, record, path, config)
        else:
            model = load_official(cls, path, {**record.config, **config})
    width = model.config.get("feature_dim")
    if record.feature_dim is not None and width != record.feature_dim:
        raise CheckpointError(
            f"{path} has feature_dim={width}, the record of {what} says {record.feature_dim}; "
            "it is the file of another backbone"
        )
    model.info = dataclasses.replace(
        model.info,
        image_mean=record.image_mean,
        image_std=record.image_std,
        weights_license=record.weights_license,
    )
    model.trained_for = record.trained_for()
    return model


@contextmanager
def _open_weights(
    what: str, record: Checkpoint, names: Sequence[str], file: str | os.PathLike[str] | None
) -> Iterator[Path]:
    """Yield the path of a record's weights: the package's own file, or what the lookup finds."""
    if record.bundled and file is None:
        inside = resources.files("upfeat.upsamplers") / "bundled" / record.file.filename
        with resources.as_file(inside) as path:
            yield path
    else:
        yield find_weights(what, names, file=file, hub=record.file)


def _load_ours(
    cls: type[ModelType], record: Checkpoint, path: Path, config: Mapping[str, Any]
) -> ModelType:
    """Load a file of our own layout: float16 on disk, float32 in the model."""
    model = cls(**{**record.build_config(cls), **config})
    state = {key: value.float() for key, value in read_checkpoint(path).items()}
    load_strictly(model, state, origin=str(path), name=type(model).__name__)
    return model.eval()


def load_official(
    cls: type[ModelType],
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> ModelType:
    """Build ``cls`` from an official file or state dict; sizes come from the tensors."""
    if isinstance(source, Mapping):
        origin, content = "the state dict", dict(source)
    elif isinstance(source, str | os.PathLike):
        path = find_weights(cls.info.name, [], file=source)
        origin, content = str(path), read_checkpoint(path, allowed_globals=cls.official_globals)
    else:
        raise CheckpointError(
            f"weights of {cls.info.name} must be a file or a state dict, got "
            f"{type(source).__name__}; of a module, give module.state_dict()"
        )
    state = _tensors(content, cls, origin)
    sizes, own = _read_official(cls, state, origin)
    model = _build(cls, sizes, config, f"{origin} does not fit {cls.info.name}: the sizes in it")
    load_strictly(model, own, origin=origin, name=type(model).__name__)
    model.info = dataclasses.replace(model.info, weights_license=cls.info.weights_license)
    return model.eval()


def _read_official(
    cls: type["SavedModel"], state: Mapping[str, Tensor], origin: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read constructor arguments and tensors under our names, or say that it is another's file."""
    try:
        return cls.official_config(state), cls.convert_official(state)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    except Exception as error:  # whatever the reading raises for the tensors of another network
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{origin} is not a {cls.info.name} state dict: {reason}; "
            f"it has {some_names(list(state))}"
        ) from error


def _build(
    cls: type[ModelType], sizes: Mapping[str, Any], config: Mapping[str, Any], what: str
) -> ModelType:
    """Build the class from arguments that a file holds and those that a caller gave."""
    try:
        return cls(**{**sizes, **config})
    except Exception as error:  # whatever a constructor raises for the sizes of another network
        if config and isinstance(error, TypeError | ValueError):
            raise  # it may be the caller's argument
        raise CheckpointError(
            f"{what} make no {cls.__name__} ({type(error).__name__}: {error}); got {dict(sizes)}"
        ) from error


def _tensors(content: Mapping[str, Any], cls: type["SavedModel"], origin: str) -> dict[str, Tensor]:
    """Take the tensors of one network out of a training checkpoint."""
    if cls.official_parts and all(isinstance(content.get(k), Mapping) for k in cls.official_parts):
        content = {f"{k}.{name}": t for k in cls.official_parts for name, t in content[k].items()}
    content = unwrap_state(content, (*cls.official_keys, cls.info.name, "upsampler"))
    state = _named_tensors(content)
    if not state:  # several state dicts side by side
        state = {
            f"{outer}.{key}": value
            for outer, inner in content.items()
            if isinstance(inner, Mapping)
            for key, value in inner.items()
            if isinstance(value, Tensor)
        }
    if not state:
        raise CheckpointError(
            f"{origin} holds no tensors for {cls.info.name}; its keys are "
            f"{some_names([str(key) for key in content]) or 'none'}"
        )
    return state


def _named_tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


# -- upfeat's own layout: config.json, model.safetensors, README.md --------------------------------


def save_folder(
    model: "SavedModel",
    folder: Path,
    card: str | None,
    backbone: TrainedFor | None,
    scores: Sequence[CardScore] = (),
) -> None:
    """Write the three files; the configuration last, so that a folder with one is complete.

    A card that somebody else wrote, or changed, is kept.
    """
    own = OwnFiles(folder)
    check_model_folder(folder)
    config = {
        "architecture": model.info.name,
        "config": model.config,
        "backbone": None if backbone is None else dataclasses.asdict(backbone),
        "image_mean": model.info.image_mean,
        "image_std": model.info.image_std,
        "feature_norm": model.info.feature_norm,
        "weights_license": model.info.weights_license,
        "upfeat_version": upfeat.__version__,
    }
    text = json.dumps(config, indent=2)
    with own.parts() as parts:
        write_safetensors(parts / WEIGHTS_FILE, model.state_dict(), {"format": "pt"})
        own.take(parts / WEIGHTS_FILE, WEIGHTS_FILE, MAKER)
    try:
        own.write(CARD_FILE, card_for(model, backbone, card, scores).encode(), MAKER)
    except ForeignFileError:
        logger.warning("%s was not written by upfeat and is kept", folder / CARD_FILE)
    own.write(CONFIG_FILE, f"{text}\n".encode(), MAKER)


def check_model_folder(folder: Path) -> None:
    """Refuse a folder in which :func:`save_folder` would replace somebody else's file.

    Raises:
        ForeignFileError: its weights or its configuration are not what upfeat wrote there.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        OwnFiles(folder).check(name, MAKER)


def rewrite_card(
    model: "SavedModel", folder: Path, licence: str | None, scores: Sequence[CardScore] | None
) -> None:
    """Write the front matter of a saved model's card anew; its Markdown stays as it is.

    A licence is kept in ``config.json``, too; None for it, or for the scores, leaves the card's.

    Raises:
        UnknownNameError: the hub knows no such licence.
        CheckpointError: the card's front matter cannot be read.
    """
    own, card = OwnFiles(folder), folder / CARD_FILE
    front, text = split_card(card.read_text(encoding="utf-8")) if card.is_file() else ({}, None)
    stated = front.get("license") if licence is None else check_licence(licence)
    if licence is not None or (stated in LICENCE_IDS and stated != "other"):
        model.info = dataclasses.replace(model.info, weights_license=str(stated))
    if licence is not None:
        config = read_config(folder / CONFIG_FILE) | {"weights_license": stated}
        own.adopt(CONFIG_FILE, MAKER)
        own.write(CONFIG_FILE, f"{json.dumps(config, indent=2)}\n".encode(), MAKER)
    kept = {key: value for key, value in front.items() if key not in OWN_FIELDS}
    if scores is None:
        kept |= {key: front[key] for key in ("metrics", "model-index") if key in front}
    own.adopt(CARD_FILE, MAKER)
    written = card_for(model, model.trained_for, text, scores or (), kept)
    own.write(CARD_FILE, written.encode(), MAKER)


def load_folder(folder_or_id: str | os.PathLike[str], **hub: Any) -> "SavedModel":
    """Load a folder of :func:`save_folder`, or a Hugging Face repository that holds one."""
    folder = Path(folder_or_id).expanduser()
    folder = model_folder(folder) if folder.is_dir() else download_folder(str(folder_or_id), hub)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsNotFoundError(
                f"{folder} has no {name}; a folder of save_pretrained holds {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}; for an official file use upfeat.from_official"
            )
    cls, arguments, told, backbone = _read_own_config(folder / CONFIG_FILE)
    model = _build(cls, arguments, {}, f"{folder / CONFIG_FILE}: its arguments")
    state = _named_tensors(unwrap_state(read_checkpoint(folder / WEIGHTS_FILE)))
    name = f"the {type(model).__name__} of the {CONFIG_FILE} beside it"
    load_strictly(model, state, origin=str(folder / WEIGHTS_FILE), name=name)
    model.info = dataclasses.replace(model.info, **told)
    model.trained_for = backbone
    return model.eval()


def model_folder(folder: Path) -> Path:
    """Return the model in the folder of a run of ``upfeat train``; another folder as it is."""
    if not (folder / RUN_LOG).is_file() or (folder / WEIGHTS_FILE).is_file():
        return folder
    model = folder / RUN_MODEL
    if not (model / CONFIG_FILE).is_file():
        raise WeightsNotFoundError(
            f"{folder} is a run of upfeat train without a model yet: it was interrupted, or is "
            f"still running; upfeat train --resume --out {folder} finishes it"
        )
    return model


def _read_own_config(
    path: Path,
) -> tuple[type["SavedModel"], dict[str, Any], dict[str, Any], TrainedFor | None]:
    """Return the class, its arguments, and what the file tells about this set of weights."""
    config = read_config(path)
    for key, wanted in (("architecture", str), ("config", dict)):
        if not isinstance(config.get(key), wanted):
            raise CheckpointError(
                f"{path} is not a configuration of upfeat: its {key!r} is {config.get(key)!r}, "
                f"expected a {wanted.__name__}; for an official file use upfeat.from_official"
            )
    try:
        cls = get_class(config["architecture"])
        mean, std = check_normalization(config.get("image_mean"), config.get("image_std"))
        backbone = TrainedFor.read(config.get("backbone"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    license_name = config.get("weights_license")
    if not isinstance(license_name, str | None):
        raise CheckpointError(f"{path}: its weights_license is {license_name!r}, expected a text")
    feature_norm = config.get("feature_norm", False)
    if not isinstance(feature_norm, bool):
        raise CheckpointError(
            f"{path}: its feature_norm is {feature_norm!r}, expected true or false"
        )
    told = {
        "image_mean": mean,
        "image_std": std,
        "feature_norm": feature_norm,
        "weights_license": license_name,
    }
    return cls, config["config"], told, backbone
