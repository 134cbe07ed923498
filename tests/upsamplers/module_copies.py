"""What torch makes of a module that several devices share or that is called as a function."""

from torch import Tensor, nn


def data_parallel_replica(module: nn.Module) -> nn.Module:
    """Return what ``nn.DataParallel`` gives a device: weights are plain tensors with a graph."""
    parts = list(module.modules())
    copies = {id(part): part._replicate_for_data_parallel() for part in parts}
    for part in parts:
        copy = copies[id(part)]
        for name, child in part._modules.items():
            setattr(copy, name, None if child is None else copies[id(child)])
        for name, weight in part._parameters.items():
            if weight is None:
                copy._parameters[name] = None
            else:
                setattr(copy, name, weight * 1.0)
        for name, buffer in part._buffers.items():
            setattr(copy, name, buffer)
    return copies[id(module)]


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights as tensors with a graph, for ``torch.func.functional_call``."""
    return {name: weight * 1.0 for name, weight in module.named_parameters()}
