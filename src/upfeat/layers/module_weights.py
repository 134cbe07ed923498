"""The weights of a module, also where they are no parameters of it.

``nn.DataParallel`` gives its replicas tensors that lead to the parameters, as plain attributes:
``parameters()`` of a replica is empty. ``torch.func.functional_call`` puts plain tensors in the
place of parameters, which ``get_parameter`` refuses.
"""

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["first_weight", "named_weights"]


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the weights of a module and its parts by name.

    Example:
        >>> from torch import nn
        >>> [name for name, _ in named_weights(nn.Sequential(nn.Linear(2, 3)))]
        ['0.weight', '0.bias']
    """
    if getattr(module, "_is_replica", False):
        return _of_replica(module)
    return module.named_parameters()


def first_weight(module: nn.Module) -> Tensor | None:
    """Return the first weight, which stands for the device and type of all, or None.

    Example:
        >>> from torch import nn
        >>> first_weight(nn.Linear(2, 3)).shape, first_weight(nn.ReLU())
        (torch.Size([3, 2]), None)
    """
    for _, weight in named_weights(module):  # next(..., None) is not traced by PyTorch 2.6
        return weight
    return None


def _of_replica(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield (f"{path}.{name}" if path else name), value
