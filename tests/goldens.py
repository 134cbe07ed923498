"""Reading stored inputs, weights and outputs of the original code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

STATE_PREFIX = "state."


def load_golden(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors of a golden file and its description.

    Weights (``state.*``) that were stored as float16 to save space are given back as float32, the
    dtype in which the original ran.
    """
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    for key, value in tensors.items():
        if key.startswith(STATE_PREFIX) and value.dtype == torch.float16:
            tensors[key] = value.float()
    return tensors, meta


def golden_state(tensors: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    """Returns the original's state dict: the ``state.<prefix>*`` tensors under their own names."""
    start = STATE_PREFIX + prefix
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
