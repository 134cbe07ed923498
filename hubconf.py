"""Entries of ``torch.hub``: every upsampler by its name, a backbone, a pipeline of both.

>>> up = torch.hub.load("OWNER/upfeat", "kin")  # a repository on GitHub
>>> up = torch.hub.load("FOLDER", "jafar", source="local", pretrained="vit_compact_patch16")
>>> pipe = torch.hub.load("FOLDER", "pipeline", source="local", device="cuda")
"""

import importlib.util as _imports
import sys
import typing as _typing
from collections import abc as _abc
from pathlib import Path as _Path

if _imports.find_spec("upfeat") is None:  # not installed: the package beside this file
    sys.path.insert(0, str(_Path(__file__).resolve().parent / "src"))

import upfeat as _upfeat
from upfeat.upsamplers.registry import get_checkpoint as _get_checkpoint

dependencies = ["torch", "numpy", "PIL", "timm", "safetensors", "huggingface_hub"]


def backbone(
    name: str = "upfeat/vit_compact_patch16", *, device: str = "cpu", **options: _typing.Any
) -> _upfeat.Backbone:
    """Return a backbone, such as ``"timm/vit_small_patch14_dinov2.lvd142m"``.

    Args:
        name: of the backbone; the default comes with the package.
        device: where it runs.
        **options: arguments of ``upfeat.create_backbone``.
    """
    return _upfeat.create_backbone(name, **options).to(device)


def pipeline(
    backbone: str = "upfeat/vit_compact_patch16",
    upsampler: str = "kin.upfeat",
    *,
    device: str = "cpu",
    **options: _typing.Any,
) -> _upfeat.Pipeline:
    """Return a pipeline from images to sharp features.

    Args:
        backbone: name of the backbone.
        upsampler: what ``upfeat.load_upsampler`` reads: a name with tag, a folder, a hub id.
        device: where both run.
        **options: arguments of ``upfeat.Pipeline``.
    """
    network = _upfeat.create_backbone(backbone)
    method = _upfeat.load_upsampler(upsampler, network)
    return _upfeat.Pipeline(network, method, device=device, **options)


def _entry(name: str) -> _abc.Callable[..., _upfeat.Upsampler]:
    """Return the entry of one method."""

    def load(
        *, pretrained: bool | str = True, device: str = "cpu", **config: _typing.Any
    ) -> _upfeat.Upsampler:
        tags = [tag.partition(".")[2] for tag in _upfeat.list_upsamplers(f"{name}.*", True)]
        records = {tag: _get_checkpoint(f"{name}.{tag}") for tag in tags}
        packaged = [tag for tag, record in records.items() if record is not None and record.bundled]
        if len(packaged) == 1:
            tags = packaged
        if pretrained is True and len(tags) > 1:
            raise ValueError(
                f"{name} has several weights; name one, pretrained={tags[0]!r}, of "
                f"{', '.join(tags)}, or give pretrained=False"
            )
        tag = pretrained if isinstance(pretrained, str) else next(iter(tags), None)
        if not pretrained or tag is None:
            return _upfeat.create_upsampler(name, pretrained=False, **config).to(device)
        return _upfeat.create_upsampler(f"{name}.{tag}", pretrained=True, **config).to(device)

    load.__name__ = name
    load.__doc__ = f"""Return the upsampler {name}; `upfeat info {name}` says what it is.

    Args:
        pretrained: a tag of published weights, True for the only ones in the package, or the
            only ones that there are, False for random ones.
        device: where it runs.
        **config: arguments of the method's class, such as feature_dim=384.
    """
    return load


globals().update({name: _entry(name) for name in _upfeat.list_upsamplers()})
