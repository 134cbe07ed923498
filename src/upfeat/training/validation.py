"""The loss on images that a run does not train on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from upfeat.training.logs import Means
from upfeat.training.parts import Parts
from upfeat.training.processes import derive_seed
from upfeat.upsamplers import Upsampler

__all__ = ["validation_loss"]


@torch.no_grad()
def validation_loss(
    parts: Parts,
    model: Upsampler,
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    seed: int,
) -> dict[str, float]:
    """Return the mean of the objective's terms over the held-out images.

    Crops and draws are the same at each call, so that the numbers of a run compare. Nothing of the
    run changes.

    Args:
        parts: of the run; ``parts.validation`` holds the images.
        model: the upsampler as it would be exported, in eval mode.
        batch_size: images at a time.
        device: of the networks.
        autocast: returns a context of the run's precision.
        seed: of the run.

    Raises:
        ValueError: there are no held-out images.
    """
    source = parts.validation
    if source is None or not len(source):
        raise ValueError("this run holds no images out; name some with --val DIR")
    means = Means()
    with _evaluating(parts.objective), torch.random.fork_rng(devices=[]):
        for start in range(0, len(source), batch_size):
            count = min(batch_size, len(source) - start)
            batch = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in source.batch(start, count).items()
            }
            drawn = derive_seed(seed, 0, start)
            torch.manual_seed(drawn)
            generator = torch.Generator().manual_seed(drawn)
            with autocast():
                terms = parts.objective.step(batch, parts.backbones, model, generator)
            for _ in range(count):  # the last batch may be smaller
                means.add({name: float(value) for name, value in terms.items()})
    return means.take()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and each of its modules back into its own afterwards."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True
