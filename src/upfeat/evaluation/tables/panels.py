"""Pictures that a protocol leaves beside its results, for ``upfeat report``, and their colours.

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

import base64
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
from upfeat.ops.colors import UNKNOWN, class_colors, class_palette

IMAGES = 3  # of a split, of which a protocol leaves pictures

Kind = Literal["image", "features", "prediction", "target", "depth", "cam"]
"""What a panel shows."""
FOLDER = "panels"
"""Folder of the panels, in the results'."""
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
        found = self.values.flatten()
        if self.ignore_index is not None:
            found = found[found != self.ignore_index]
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
    """
    pixels = (colors.cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Panel(**about, label="image", kind="image", values=pixels)


def save_panel(folder: str | os.PathLike[str], panel: Panel) -> Path:
    """Write a panel into ``folder/panels``, whole or not at all; one of the same name is replaced.

    A file of that name that is no panel stays.

    Args:
        folder: of the results.
        panel: what to write.

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
    """Return which images of a split a protocol leaves pictures of: three, evenly spread."""
    return frozenset((2 * i + 1) * count // (2 * IMAGES) for i in range(IMAGES) if count)


def _stored(panel: Panel) -> np.ndarray:
    """Return the values in the smallest type that keeps them."""
    values = panel.values.detach().cpu()
    if panel.kind in _COLOURS:
        return values.numpy()
    if panel.kind in _CLASSES:
        numbers = values.numpy()
        if numbers.min() >= 0:
            return numbers.astype(np.min_scalar_type(int(numbers.max())))
        return numbers
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
    """Return the panels of a folder of results, or of a folder ``panels`` itself, sorted."""
    folder = Path(folder)
    inside = folder if folder.name == FOLDER else folder / FOLDER
    return sorted(file for file in inside.glob("*.npz") if not file.name.startswith("."))


# -- colours ---------------------------------------------------------------------------------------

RAMP: tuple[tuple[int, int, int], ...] = (
    (20, 16, 48), (72, 30, 110), (140, 44, 118), (204, 72, 92), (240, 126, 66), (250, 190, 98),
    (253, 240, 190),
)  # fmt: skip
"""Dark to light, so that order survives print without colour."""


def ramp_colors(values: Tensor, low: float, high: float) -> Tensor:
    """Return (3, H, W) uint8 of values (H, W), ``low`` dark and ``high`` light.

    Args:
        values: numbers; NaN is drawn grey, what lies outside is clipped.
        low: start of the scale that all pictures share.
        high: end of it.
    """
    if values.dim() != 2:
        raise ValueError(f"wanted values (H, W), got {shape_text(values)}")
    span = high - low if high > low else 1.0
    unknown = values.isnan()
    place = ((values.double() - low) / span).nan_to_num(0.0).clamp(0, 1) * (len(RAMP) - 1)
    ramp = torch.tensor([*RAMP, RAMP[-1]], dtype=torch.float64)
    lower = place.floor().long()
    part = (place - lower)[..., None]
    mixed = ramp[lower] * (1 - part) + ramp[lower + 1] * part  # (H, W, 3)
    mixed[unknown] = torch.tensor(UNKNOWN, dtype=torch.float64)
    return mixed.round().to(torch.uint8).permute(2, 0, 1)


def shared_scale(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the smallest and the largest finite number of the measures among some panels."""
    measured = [panel.values.float() for panel in panels if panel.kind in ("depth", "cam")]
    known = [values[values.isfinite()] for values in measured]
    filled = [values for values in known if values.numel()]
    if not filled:
        return 0.0, 1.0
    return min(float(v.min()) for v in filled), max(float(v.max()) for v in filled)


def panel_colors(
    panel: Panel, scale: tuple[float, float], palette: Sequence[tuple[int, int, int]] = ()
) -> Tensor:
    """Return a panel as a picture (3, H, W) uint8.

    Args:
        panel: what to draw.
        scale: numbers of the darkest and the lightest colour of a measure.
        palette: of classes; default the panel's own, or the usual one.
    """
    if panel.kind in _COLOURS:
        return panel.values
    if panel.kind in _CLASSES:
        palette = palette or panel.palette or class_palette(len(panel.classes))
        return class_colors(panel.values, tuple(palette), panel.ignore_index)
    return ramp_colors(panel.values, *scale)


def covered_part(colors: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Cut off what a coarse map covers beyond the image, and enlarge it without smoothing.

    Args:
        colors: (3, h, w) uint8.
        extent: height and width that it covers, in units of the image.
        size: (H, W) of the image.

    Returns:
        The map itself where it covers just the image, else (3, H, W).
    """
    if extent == (1.0, 1.0):
        return colors
    rows, cols = (
        ((torch.arange(side) + 0.5) / side / part * cells).long().clamp(max=cells - 1)
        for side, part, cells in zip(size, extent, colors.shape[-2:], strict=True)
    )
    return colors[:, rows][:, :, cols]


def png_bytes(colors: Tensor, largest: int = 640) -> tuple[bytes, tuple[int, int]]:
    """Return a PNG file of (3, H, W) uint8 and its size; larger pictures are reduced.

    Few colours give a palette PNG, several times smaller, reduced without mixing colours.

    Args:
        colors: the picture.
        largest: longer side, in pixels.
    """
    from PIL import Image

    if colors.dim() != 3 or colors.shape[0] != 3 or colors.dtype != torch.uint8:
        raise ValueError(
            f"a picture must be (3, H, W) uint8, got {shape_text(colors)} {colors.dtype}"
        )
    # (3, H, W) -> (H, W, 3)
    picture = Image.fromarray(colors.cpu().permute(1, 2, 0).contiguous().numpy())
    few = picture.getcolors(256) is not None
    scale = min(1.0, largest / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        mixing = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
        picture = picture.resize((width, height), mixing)
    if few:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue(), (picture.height, picture.width)


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that needs no network."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
