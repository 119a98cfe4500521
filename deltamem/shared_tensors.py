"""Adapters that ship hold a tensor once: what an earlier one has already is named, not stored again.

Adapters that ship are made one from another, and most keep most of what they were made from. Beside its weights file
such an adapter has `shared_tensors.json`: names of adapters that ship, each with the names of the tensors that are in
its weights file and are this one's as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from deltamem.errors import AdapterError, shown

SHARED_FILE = "shared_tensors.json"
_LEAST = 2**16
"""Bytes that another adapter has to hold: a bias or two that are the same by chance are no reason to need it."""


def shared_tensors(directory: Path, holders: Mapping[str, Path]) -> dict[str, Tensor]:
    """Tensors of the adapter in `directory` that others hold; none where it has all of its own.

    Args:
        directory: of the adapter.
        holders: the weights files of adapters that ship, by name. Nothing else can be named: a path would let an
            adapter take any file there is.

    Raises:
        AdapterError: the list, or what it names, can't be read.
    """
    try:
        listed = json.loads((directory / SHARED_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        listed = None
    if not _is_well_formed(listed):
        raise AdapterError(f"{SHARED_FILE} of adapter {directory.name} can't be read")
    found: dict[str, Tensor] = {}
    for holder, names in listed.items():
        if holder not in holders:
            raise AdapterError(
                f"adapter {directory.name} shares tensors with {shown(holder)}, which does not ship with this "
                "deltamem; install a newer one"
            )
        with safe_open(holders[holder], "pt") as file:
            missing = set(names) - set(file.keys())
            if missing:
                raise AdapterError(f"adapter {holder} lacks the tensor {shown(min(missing))}")
            found |= {name: file.get_tensor(name) for name in names}
    return found


def held_by(holders: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Which of an adapter's tensors are in other ones' weights files, as `shared_tensors.json` says it.

    Args:
        holders: those files by the names of their adapters; the first counts where several have a tensor.
        tensors: of the adapter.
    """
    left, listed = set(tensors), {}
    for holder, weights in holders.items():
        with safe_open(weights, "pt") as file:
            same = sorted(name for name in left & set(file.keys()) if _equal(tensors[name], file.get_tensor(name)))
        if sum(tensors[name].nbytes for name in same) >= _LEAST:
            left -= set(same)
            listed[holder] = same
    return listed


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _is_well_formed(listed: object) -> bool:
    return isinstance(listed, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listed.values()
    )
