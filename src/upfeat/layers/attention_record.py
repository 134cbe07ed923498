"""What attention modules look at, read while they work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["attention_modules", "record_attention"]


def attention_modules(module: nn.Module) -> list[nn.MultiheadAttention]:
    """Return the attention modules within a module, in the order of their registration.

    Example:
        >>> len(attention_modules(nn.TransformerDecoderLayer(8, 2)))
        2
    """
    return [part for part in module.modules() if isinstance(part, nn.MultiheadAttention)]


@contextmanager
def record_attention(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights of every attention within ``module`` that is called in the block.

    They are averaged over the heads, (B, N, n) in the order of the calls, and carry gradients.

    Example:
        >>> import torch
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> with record_attention(attention) as weights:
        ...     _ = attention(torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8))
        >>> weights[0].shape
        torch.Size([1, 5, 3])
    """
    recorded: list[Tensor] = []

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"need_weights": True, "average_attn_weights": True}

    def keep(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        recorded.append(output[1])

    hooks = []
    for attention in attention_modules(module):
        hooks.append(attention.register_forward_pre_hook(ask, with_kwargs=True))
        hooks.append(attention.register_forward_hook(keep))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
