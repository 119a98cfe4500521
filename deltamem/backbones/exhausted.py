"""Memory that ran out: how to tell, and what to say."""

from __future__ import annotations

import torch

from deltamem.backbones.catalog import SMALL_DEFAULT


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, of a GPU or of the machine."""
    # PyTorch has no class of its own for its allocator on the CPU.
    plain = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return plain or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def out_of_memory_advice(name: str, device: torch.device) -> str:
    """What to tell a person whose memory is full."""
    smaller = f"a smaller --context, or a smaller --backbone such as {SMALL_DEFAULT}"
    if device.type == "cpu":
        return f"this machine has too little free memory for {name}; close other programs, use {smaller}"
    return (
        f"the GPU has too little free memory for {name}; close other programs on it, use --quantize nf4, {smaller}, "
        "or use --device cpu"
    )
