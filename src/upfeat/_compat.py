"""Repairs of the environment that the package needs before it can import what it builds on.

torchvision's Linux wheels on the package index are compiled against a CUDA build of PyTorch.
Beside a CPU build their compiled library cannot be loaded, and ``import torchvision`` (which timm
does) ends in ``operator torchvision::nms does not exist``: its Python part describes two operators
that nobody has declared. Declaring their signatures is enough. The operators themselves stay
absent; torchvision says so clearly when one is called.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# The declarations last only as long as the library object that made them.
_declared: list[torch.library.Library] = []


def _has_operator(name: str) -> bool:
    return hasattr(torch.ops.torchvision, name)


def _compiled_library(package: Path) -> Path | None:
    """Returns the path of torchvision's compiled operators, as torchvision itself looks it up."""
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    spec = importlib.machinery.FileFinder(str(package), loader).find_spec("_C")
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def ensure_torchvision_operators() -> bool:
    """Makes ``import torchvision`` work where its wheel was built for another PyTorch.

    Does something in one case only: a CPU build of PyTorch, an installed torchvision that has not
    been imported yet, and a compiled library of torchvision that cannot be loaded. It runs when
    this module is imported, takes about a millisecond and may be called again at any time.

    Returns:
        True if operator signatures are declared by us, False if nothing had to be done.
    """
    if _declared:
        return True
    if torch.version.cuda is not None or torch.version.hip is not None:
        return False
    if "torchvision" in sys.modules or _has_operator("nms"):
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    library = _compiled_library(Path(spec.origin).parent)
    if library is not None:
        try:
            # Loading twice is harmless: torchvision will get this same library again.
            torch.ops.load_library(str(library))
        except (ImportError, OSError):
            pass
        else:
            return False
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not _has_operator(name):
            fragment.define(schema)
    _declared.append(fragment)
    return True


ensure_torchvision_operators()


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the call.

    PyTorch 2.6 has no function for it, and none at all where Dynamo traces for an export.
    """
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
