"""Processes and devices of a run, on lightning-fabric."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from upfeat.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "derive_seed",
    "flush_denormals",
    "gather",
    "is_main_process",
    "keep_global_draws",
    "make_fabric",
    "pick_device",
    "share_gradients",
    "stop_signals",
]

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}

_Item = TypeVar("_Item")


def make_fabric(config: TrainConfig) -> "Fabric":
    """Return the launched Fabric of a run.

    Under ``torchrun`` the processes exist already. Else ``devices`` processes are started: each
    runs this program again with the same arguments. Gradients are shared by
    :func:`share_gradients`, so no module is wrapped and objectives see the upsampler itself.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    cuda = pick_device(config).type == "cuda"
    external = "TORCHELASTIC_RUN_ID" in os.environ
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if external else config.devices
    nodes = int(os.environ["GROUP_WORLD_SIZE"]) if external else 1
    strategy: Any = "auto"
    if devices * nodes > 1:
        strategy = DDPStrategy(process_group_backend="nccl" if cuda else "gloo")
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def pick_device(config: TrainConfig) -> torch.device:
    """Return ``cpu`` or ``cuda``, as the configuration and this machine have it.

    Raises:
        ValueError: half precision on a CPU, or GPUs that are not there.
    """
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU; use device=cpu or device=auto")
    if cuda and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"devices={config.devices}, but PyTorch finds {torch.cuda.device_count()} GPUs; use "
            "fewer, or device=cpu"
        )
    if config.precision == "fp16" and not cuda:
        raise ValueError("precision=fp16 needs a GPU; use precision=bf16 or fp32 on the CPU")
    return torch.device("cuda" if cuda else "cpu")


def slow_bfloat16(device: torch.device | str) -> bool:
    """Whether ``precision=bf16`` is many times slower than fp32: on a CPU without AVX-512.

    There PyTorch computes convolutions in bfloat16 by loops instead of oneDNN.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.device(device).type == "cpu" and supported is not None and not supported()


def is_main_process() -> bool:
    """Return whether this process is the first of its run, also before the run is launched."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def derive_seed(*parts: int) -> int:
    """Return a seed that depends on all parts, such as run seed, step and micro-batch.

    Every random draw of a step comes from generators that are seeded this way at its start. The
    state of a generator therefore never has to be stored, and it does not matter which process
    computes which part of a batch.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def share_gradients(fabric: "Fabric", parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients of each process by their sum over all, in one message.

    A parameter without a gradient on any process keeps none, as it would in a single process.
    """
    if fabric.world_size == 1:
        return
    used = [parameter.grad is not None for parameter in parameters]
    pieces = [
        (torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in parameters
    ]
    flags = pieces[0].new_tensor(used)
    # (all parameters' elements + one flag each,)
    flat = fabric.all_reduce(torch.cat([*pieces, flags]), reduce_op="sum")
    if not isinstance(flat, Tensor):
        raise TypeError(f"all_reduce returned {type(flat).__name__}, expected a tensor")
    *sums, flags = flat.split([*(piece.numel() for piece in pieces), len(pieces)])
    for parameter, total, users in zip(parameters, sums, flags.tolist(), strict=True):
        if users:
            parameter.grad = total.view_as(parameter).to(parameter.dtype)


def gather(fabric: "Fabric", item: _Item) -> list[_Item]:
    """Return the plain Python objects of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return [item]
    items: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(items, item)
    return items


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal floats to zero within the block.

    Distant weights of a sharp attention are denormal, and CPUs compute with them many times slower.
    Where the CPU has no such mode, nothing changes.

    Example:
        >>> with flush_denormals():
        ...     tiny = torch.tensor([1e-30]) * 1e-10
        >>> bool(tiny == 0)
        True
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    before = bool(smallest / 2 == 0)  # the mode has no getter
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def keep_global_draws() -> Iterator[None]:
    """Give torch's global generators back as they were, after what seeds them within the block.

    It is for the whole process, as dropout in training draws from no other generator.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of a step; a second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # signals can be caught in the main thread only
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for known, handler in old.items():
            signal.signal(known, handler)

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
