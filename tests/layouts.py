"""The ways in which one map can lie in memory."""

import torch
from torch import Tensor


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return a map (B, C, H, W) with the same values in other layouts, by name."""
    last = x.contiguous(memory_format=torch.channels_last)
    return {
        "channels_last": last,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "batch inside": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "part of more channels": torch.cat((x, x), 1)[:, : x.shape[1]],
        "part of more channels_last": torch.cat((last, last), 1)[:, : x.shape[1]],
        "part of a wider map": torch.cat((x, x), 3)[..., : x.shape[3]],
        "every second pixel": x.repeat_interleave(2, 3)[..., ::2],
        "every second channel": x.repeat_interleave(2, 1)[:, ::2],
    }


def expanded(x: Tensor) -> dict[str, Tensor]:
    """Return maps of the shape of ``x`` (B, C, H, W) with strides of zero, by the axis."""
    return {
        "one item": x[:1].expand_as(x),
        "one channel": x[:, :1].expand_as(x),
        "one row": x[:, :, :1].expand_as(x),
        "one column": x[..., :1].expand_as(x),
    }
