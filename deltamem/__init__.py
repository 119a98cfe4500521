"""deltamem: a chat with a language model on your own machine that remembers you (δ-mem, arXiv 2605.12357).

The public names are loaded when they are first used, so that ``import deltamem`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deltamem.config import DeltaMemConfig
    from deltamem.errors import DeltaMemError
    from deltamem.memory import DeltaMemory
    from deltamem.state import MemoryState

_HOMES = {
    "DeltaMemConfig": "deltamem.config",
    "DeltaMemError": "deltamem.errors",
    "DeltaMemory": "deltamem.memory",
    "MemoryState": "deltamem.state",
}

__all__ = ["DeltaMemConfig", "DeltaMemError", "DeltaMemory", "MemoryState", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
