"""Pictures that a protocol leaves beside its results, for ``upfeat report``.

Each is one file, ``panels/TASK--DATA--IMAGE--LABEL--KIND--HASH.npz`` in the folder of the results,
with the array ``values`` and the text ``meta`` (JSON). It holds numbers, not colours, wherever
pictures must share a scale: the report draws all methods of an image alike.

=============  =====================================  ==========================================
kind           values                                 drawn
=============  =====================================  ==========================================
``image``      (3, H, W) uint8                        as it is
``features``   (3, H, W) uint8, one basis for all     as it is; smaller maps without smoothing
``prediction`` (H, W) whole numbers                   with the classes' palette
``target``     (H, W) whole numbers                   with the classes' palette
``depth``      (H, W) numbers, NaN = unknown          one scale for all of an image
``cam``        (H, W) numbers, NaN = unknown          one scale for all of an image
=============  =====================================  ==========================================
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from upfeat._files import write_bytes
from upfeat.errors import shape_text

__all__ = [
    "FOLDER",
    "Kind",
    "Panel",
    "image_panel",
    "load_panel",
    "panel_files",
    "save_panel",
    "shown_images",
]

IMAGES = 3  # of a split, of which a protocol leaves pictures

Kind = Literal["image", "features", "prediction", "target", "depth", "cam"]
FOLDER = "panels"
_FORMAT = "upfeat-panel-1"
_COLOURS: tuple[Kind, ...] = ("image", "features")
_CLASSES: tuple[Kind, ...] = ("prediction", "target")


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of one image.

    Attributes:
        task: the protocol, as in the results.
        data: the set.
        image: name of the image, unique in the set.
        label: what the user calls the method; ``image`` or ``target`` where none made it.
        kind: see the module.
        values: see the module.
        backbone: its name, or empty.
        classes: names, by number; of predictions and targets.
        palette: a colour (red, green, blue) for each class; empty for the report's own.
        ignore_index: of predictions and targets; drawn as no class.
        unit: of the values, such as ``m``.
        note: a short caption, such as the image's own score.

    Raises:
        ValueError: the values do not fit the kind.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.tables.panels import Panel
        >>> Panel("cam", "imagenet", "n01", "bilinear", "cam", torch.rand(4, 6)).values.shape
        torch.Size([4, 6])
    """

    task: str
    data: str
    image: str
    label: str
    kind: Kind
    values: Tensor
    backbone: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore_index: int | None = None
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        values, what = self.values, f"{shape_text(self.values)} {self.values.dtype}"
        if values.numel() == 0:
            raise ValueError(f"a panel needs pixels, got {what}")
        if self.kind in _COLOURS:
            if values.dim() != 3 or values.shape[0] != 3 or values.dtype != torch.uint8:
                raise ValueError(f"{self.kind} must be (3, H, W) uint8, got {what}")
            return
        if values.dim() != 2:
            raise ValueError(f"{self.kind} must be (H, W), got {what}")
        if self.kind in _CLASSES:
            self._check_classes()

    def _check_classes(self) -> None:
        if self.values.is_floating_point() or self.values.is_complex():
            raise ValueError(f"{self.kind} must hold whole numbers, got {self.values.dtype}")
        if self.palette and len(self.palette) != len(self.classes):
            raise ValueError(
                f"the palette must have a colour for each of {len(self.classes)} classes, got "
                f"{len(self.palette)}"
            )
        found = (
            self.values[self.values != self.ignore_index]
            if self.ignore_index is not None
            else self.values
        )
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < len(self.classes):
            raise ValueError(
                f"{self.kind} holds class {int(found.min())} to {int(found.max())}, wanted 0 to "
                f"{len(self.classes) - 1} or the ignored {self.ignore_index}; name the classes"
            )


def image_panel(colors: Tensor, **about: Any) -> Panel:
    """Return the picture of an image that the others of it stand beside.

    Args:
        colors: (3, H, W) in [0, 1].
        **about: task, data, image and backbone of the :class:`Panel`.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.tables.panels import image_panel
        >>> image_panel(torch.ones(3, 2, 2), task="vos", data="davis2016", image="a").values.max()
        tensor(255, dtype=torch.uint8)
    """
    pixels = (colors.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Panel(**about, label="image", kind="image", values=pixels)


def save_panel(folder: str | os.PathLike[str], panel: Panel) -> Path:
    """Write a panel into ``folder/panels``, whole or not at all; one of the same name is replaced.

    A file of that name that is no panel stays.

    Args:
        folder: of the results.
        panel: what to write.

    Returns:
        The file.

    Raises:
        ValueError: something else has that name.

    Example:
        >>> import tempfile, torch
        >>> from upfeat.evaluation.tables.panels import Panel, load_panel, save_panel
        >>> panel = Panel("cam", "imagenet", "n01", "jafar", "cam", torch.rand(4, 6), unit="share")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_panel(save_panel(folder, panel))
        >>> again.label, torch.equal(again.values, panel.values)
        ('jafar', True)
    """
    meta = {"format": _FORMAT} | {
        name: getattr(panel, name) for name in Panel.__dataclass_fields__ if name != "values"
    }
    names = (panel.task, panel.data, panel.image, panel.label, panel.kind)
    digest = hashlib.blake2b(json.dumps([*names, panel.backbone]).encode(), digest_size=4)
    readable = "--".join(re.sub(r"[^\w.-]+", "-", name).strip("-.") for name in names)
    path = Path(folder) / FOLDER / f"{readable}--{digest.hexdigest()}.npz"
    if path.exists():
        load_panel(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"values": _stored(panel), "meta": np.array(json.dumps(meta))}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return path


def shown_images(count: int) -> frozenset[int]:
    """Return which images of a split a protocol leaves pictures of: three, evenly spread.

    Example:
        >>> from upfeat.evaluation.tables.panels import shown_images
        >>> sorted(shown_images(9)), sorted(shown_images(2))
        ([1, 4, 7], [0, 1])
    """
    return frozenset((2 * i + 1) * count // (2 * IMAGES) for i in range(IMAGES) if count)


def _stored(panel: Panel) -> np.ndarray:
    """Return the values in the smallest type that keeps them."""
    values = panel.values.detach().cpu()
    if panel.kind in _COLOURS:
        return values.numpy()
    if panel.kind in _CLASSES:
        numbers = values.numpy()
        return (
            numbers.astype(np.min_scalar_type(int(numbers.max())))
            if numbers.min() >= 0
            else numbers
        )
    return values.float().numpy()


def load_panel(path: str | os.PathLike[str]) -> Panel:
    """Read what :func:`save_panel` wrote.

    Raises:
        ValueError: the file holds something else; the message names it.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            meta = json.loads(str(content["meta"]))
            values = torch.from_numpy(content["values"])
        if meta.pop("format", None) != _FORMAT:
            raise ValueError("it has another format")
        classes, palette = meta.pop("classes"), meta.pop("palette")
        colours: Sequence[Any] = [tuple(colour) for colour in palette]
        if values.dtype in (torch.uint16, torch.uint32):
            values = values.long()
        return Panel(values=values, classes=tuple(classes), palette=tuple(colours), **meta)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a panel ({_FORMAT}): {error}") from error


def panel_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the panels of a folder of results, or of a folder ``panels`` itself, sorted.

    Example:
        >>> from upfeat.evaluation.tables.panels import panel_files
        >>> panel_files("nowhere")
        []
    """
    folder = Path(folder)
    inside = folder if folder.name == FOLDER else folder / FOLDER
    return sorted(file for file in inside.glob("*.npz") if not file.name.startswith("."))
