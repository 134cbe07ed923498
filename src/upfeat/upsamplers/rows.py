"""The loop over row strips: how a method's ``encode`` and ``decode`` are run, for all methods.

Legend: ``B`` batch, ``K`` value channels, ``H' W'`` output grid, ``N`` positions.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from upfeat.ops import stream
from upfeat.ops.images import Size
from upfeat.ops.runtime import MAP_BYTES, STRIP_BYTES, Output, assemble, row_strips, wants_reference

if TYPE_CHECKING:
    from upfeat.upsamplers.base import Upsampler

OVERLAPS = 4  # least height of a strip that repeats work of its neighbours, in such overlaps


def needed_graphs(
    upsampler: "Upsampler", image: Tensor, features: Tensor, values: Tensor
) -> tuple[bool, bool]:
    """Return whether the encoder and the decoder must run as plain networks: the one rule.

    They must where gradients are recorded through them, while ``torch.compile`` or
    ``torch.export`` traces or operations are counted, and where training needs whole maps.
    Everything else is computed by strips of rows in bounded memory.
    """
    if wants_reference() or (upsampler.training and upsampler.whole_in_training):
        return True, True
    if not torch.is_grad_enabled() or not upsampler.info.abilities.gradients:
        return False, False
    weights = (weight for _, weight in named_weights(upsampler))
    encoder = any(t.requires_grad for t in (image, features, *weights))
    return encoder, encoder or values.requires_grad


def decode_whole(
    upsampler: "Upsampler", image: Tensor, features: Tensor, values: Tensor, output_size: Size
) -> Tensor:
    """Compute the whole output (B, K, H', W'); the arguments are checked and of one dtype."""
    encoder, decoder = needed_graphs(upsampler, image, features, values)
    height = output_size[0]
    every = slice(0, height)
    if encoder:
        state = upsampler.encode(image, features, output_size)
        return upsampler.decode(state, upsampler.encode_values(state, values), every)
    items = _encode_items(upsampler, image, features, values, output_size, MAP_BYTES)
    if decoder:
        return torch.cat(
            [
                upsampler.decode(state, upsampler.encode_values(state, mixed), every)
                for _, state, mixed in items
            ]
        )
    out = Output(values, len(image), height)
    row_bytes = 0 if upsampler.bounded_decode else values.element_size()
    row_bytes *= upsampler.row_floats(features, values, output_size)
    row_bytes *= 1 if upsampler.streams else len(image)
    with torch.no_grad():
        for item, state, mixed in items:
            with stream.bounded(MAP_BYTES) if upsampler.streams else contextlib.nullcontext():
                mixed = upsampler.encode_values(state, mixed)
            decode = functools.partial(upsampler.decode, state, mixed)
            block = stream.block_rows(state, height)
            ahead = functools.partial(stream.read_ahead, state, height=height)
            least = OVERLAPS * upsampler.overlap
            assemble(decode, height, row_bytes, out, item, block=block, least=least, ahead=ahead)
    return out.result()


def decode_strips(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    values: Tensor,
    output_size: Size,
    map_bytes: int,
    piece_bytes: int,
) -> Iterator[tuple[slice, Tensor]]:
    """Encode all images within one budget, decode strips of rows within another."""
    encoder, decoder = needed_graphs(upsampler, image, features, values)
    graph = decoder and not encoder
    budget = map_bytes // len(image)
    items = list(_encode_items(upsampler, image, features, values, output_size, budget))
    if not graph:
        with torch.no_grad():
            items = [(i, one, upsampler.encode_values(one, mixed)) for i, one, mixed in items]
    row_bytes = len(image) * values.element_size()
    row_bytes *= upsampler.row_floats(features, values, output_size)
    for rows in row_strips(output_size[0], row_bytes, piece_bytes):
        with torch.set_grad_enabled(graph):
            strips = []
            for _, state, mixed in items:
                if graph:  # a strip's graph is its own
                    mixed = upsampler.encode_values(state, mixed)
                strips.append(upsampler.decode(state, mixed, rows))
            tile = strips[0] if len(strips) == 1 else torch.cat(strips)  # (B, K, R, W')
        yield rows, tile


def decode_positions(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    values: Tensor,
    output_size: Size,
    coords: Tensor,
) -> Tensor:
    """Compute (B, N, K) at positions (B, N, 2)."""
    encoder, decoder = needed_graphs(upsampler, image, features, values)
    if encoder:
        state = upsampler.encode(image, features, output_size)
        return upsampler.decode_at(state, upsampler.encode_values(state, values), coords)
    step = coords.shape[1]
    if upsampler.positions_apart and not decoder:
        floats = upsampler.row_floats(features, values, output_size) // output_size[1]
        step = max(1, STRIP_BYTES // (floats * values.element_size()))
    found = []
    with torch.set_grad_enabled(decoder):
        items = _encode_items(upsampler, image, features, values, output_size, MAP_BYTES)
        for item, state, mixed in items:
            mixed = upsampler.encode_values(state, mixed)
            parts = [upsampler.decode_at(state, mixed, p) for p in coords[item].split(step, dim=1)]
            found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


def _encode_items(
    upsampler: "Upsampler",
    image: Tensor,
    features: Tensor,
    values: Tensor,
    output_size: Size,
    max_bytes: int,
) -> Iterator[tuple[slice, Any, Tensor]]:
    """Yield encodings without a graph, and their values: of single images where they stream.

    Values that are the features stay the same tensor, so that a method can tell.
    """
    shared = values is features
    if upsampler.channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
        features = features.contiguous(memory_format=torch.channels_last)
    step = 1 if upsampler.streams else len(image)
    for start in range(0, len(image), step):
        item = slice(start, start + step)
        own = features[item]
        with torch.no_grad(), stream.bounded(max_bytes):
            state = upsampler.encode(image[item], own, output_size)
            stream.prepare(state)
        yield item, state, own if shared else values[item]


# -- the weights of a module, also where they are no parameters of it ------------------------------
# ``nn.DataParallel`` gives its replicas tensors that lead to the parameters, as plain attributes:
# ``parameters()`` of a replica is empty. ``torch.func.functional_call`` puts plain tensors in the
# place of parameters, which ``get_parameter`` refuses.


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return the weights of a module and its parts by name."""
    if getattr(module, "_is_replica", False):
        return _of_replica(module)
    return module.named_parameters()


def first_weight(module: nn.Module) -> Tensor | None:
    """Return the first weight, which stands for the device and type of all, or None."""
    for _, weight in named_weights(module):  # next(..., None) is not traced by PyTorch 2.6
        return weight
    return None


def _of_replica(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                yield (f"{path}.{name}" if path else name), value
