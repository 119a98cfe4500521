"""Checkpoints of a run: adapter, optimizer and progress in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deltamem.errors import DataError

CHECKPOINT_FILE = "checkpoint.safetensors"


def save_checkpoint(
    directory: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write beside, then rename: a kill at any moment leaves the old checkpoint or the new one."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"adapter.{k}": v.detach().cpu().contiguous() for k, v in parameters.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).cpu().contiguous()
    beside = directory / (CHECKPOINT_FILE + ".tmp")
    save_file(tensors, beside, metadata={"progress": json.dumps(progress)})
    beside.replace(directory / CHECKPOINT_FILE)


def load_checkpoint(directory: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint back into parameters and optimizer, and return the progress.

    Raises:
        DataError: there is none, it is damaged, or belongs to another adapter.
    """
    path = directory / CHECKPOINT_FILE
    try:
        with safe_open(path, framework="pt") as file:
            progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"there is no checkpoint in {directory} to resume from") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise DataError(f"the checkpoint in {directory} is damaged") from None
    ours = {f"adapter.{k}": v for k, v in parameters.items()}
    if any(k not in tensors or tensors[k].shape != v.shape for k, v in ours.items()):
        raise DataError(f"the checkpoint in {directory} belongs to an adapter of another shape")
    with torch.no_grad():
        for key, value in ours.items():
            value.copy_(tensors[key])
    saved = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    saved["state"] = state
    optimizer.load_state_dict(saved)
    return progress
