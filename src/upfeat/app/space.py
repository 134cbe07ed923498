"""The files of a hosted copy of the page: a Hugging Face Space, or any folder to run."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import upfeat
from upfeat._files import OwnFiles
from upfeat.errors import MissingPackageError

__all__ = ["write_space"]

MAKER = "upfeat app --space"
README = """---
title: Sharp features of a photo
emoji: 🔍
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Pixel-dense features from vision backbones
---

# Sharp features of a photo

The page of the library upfeat: upsampled features of a photo, the pixels that resemble the one that
is clicked, and words where a CLIP is offered. The encoder `upfeat/vit_compact_patch16` and the
upsampler `kin.upfeat` come with the package and need no download.

On a machine of your own: `pip install -r requirements.txt && python app.py`.
"""
APP = '''"""The page of upfeat, for a Space or `python app.py`."""

from upfeat.app import launch

launch({backbones!r}, {upsamplers!r})
'''


def write_space(
    folder: str | os.PathLike[str],
    backbones: Sequence[str] = ("upfeat/vit_compact_patch16",),
    upsamplers: Sequence[str] = (),
) -> list[Path]:
    """Write ``README.md`` with its front matter, ``app.py`` and ``requirements.txt``.

    Args:
        folder: made where there is none.
        backbones: as in :func:`upfeat.app.launch`.
        upsamplers: as in :func:`upfeat.app.launch`.

    Returns:
        The files.

    Raises:
        ForeignFileError: a file of that name was not written by this; nothing is written then.
        MissingPackageError: Gradio, whose version stands in the front matter, is not installed.
    """
    try:
        gradio = version("gradio")
    except ModuleNotFoundError as error:  # importlib.metadata.PackageNotFoundError
        raise MissingPackageError("gradio", "app", "upfeat app") from error
    extras = ["app"] + ["clip"] * any(name.startswith("clip/") for name in backbones)
    content = {
        "README.md": README.format(gradio=gradio),
        "app.py": APP.format(backbones=tuple(backbones), upsamplers=tuple(upsamplers)),
        "requirements.txt": f"upfeat[{','.join(extras)}]=={upfeat.__version__}\n",
    }
    own = OwnFiles(folder)
    for name in content:
        own.check(name, MAKER)
    return [own.write(name, text.encode(), MAKER) for name, text in content.items()]
