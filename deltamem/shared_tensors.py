"""Adapters that ship hold a tensor once: what an earlier one has already is named, not stored again.

Adapters that ship are made one from another, and most keep most of what they were made from. Beside its weights file
such an adapter has `shared_tensors.json`: names of adapters that ship, each with the names of the tensors that are in
its weights file and are this one's as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from deltamem.errors import AdapterError, shown

SHARED_FILE = "shared_tensors.json"
_LEAST = 2**16
"""Bytes that another adapter has to hold: a bias or two that are the same by chance are no reason to need it."""


def shared_tensors(directory: Path, weights_file: str, shipped: Path) -> dict[str, Tensor]:
    """Tensors of the adapter in `directory` that others hold; none where it has all of its own.

    Args:
        directory: of the adapter.
        weights_file: name of the file that each adapter has its tensors in.
        shipped: the directory of adapters that ship.

    Raises:
        AdapterError: the list, or what it names, can't be read.
    """
    try:
        listed = json.loads((directory / SHARED_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        listed = None
    if not _is_list(listed):
        raise AdapterError(f"{SHARED_FILE} of adapter {directory.name} can't be read")
    found: dict[str, Tensor] = {}
    # Names alone: a path would let an adapter name any file there is.
    there = {path.name: path for path in shipped.iterdir()}
    for owner, names in listed.items():
        if owner not in there:
            raise AdapterError(
                f"adapter {directory.name} shares tensors with {shown(owner)}, which does not ship with this deltamem; "
                "install a newer one"
            )
        with safe_open(there[owner] / weights_file, "pt") as file:
            missing = set(names) - set(file.keys())
            if missing:
                raise AdapterError(f"adapter {owner} lacks the tensor {shown(min(missing))}")
            found |= {name: file.get_tensor(name) for name in names}
    return found


def held_by_others(
    tensors: Mapping[str, Tensor], others: Sequence[str], weights_file: str, shipped: Path
) -> dict[str, list[str]]:
    """Which of an adapter's tensors are in the weights file of another one, as `shared_tensors.json` says it.

    Args:
        tensors: of the adapter.
        others: names of adapters that ship, the first of which counts where several have a tensor.
        weights_file: as for `shared_tensors`.
        shipped: as for `shared_tensors`.
    """
    left, listed = set(tensors), {}
    for owner in others:
        with safe_open(shipped / owner / weights_file, "pt") as file:
            same = sorted(name for name in left & set(file.keys()) if _equal(tensors[name], file.get_tensor(name)))
        if sum(tensors[name].nbytes for name in same) >= _LEAST:
            left -= set(same)
            listed[owner] = same
    return listed


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _is_list(listed: object) -> bool:
    return isinstance(listed, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listed.values()
    )
