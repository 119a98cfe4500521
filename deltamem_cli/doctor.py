"""`deltamem doctor`: what one pastes into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from deltamem import __version__
from deltamem_cli.terminal import pairs, write_json

_PACKAGES = ("torch", "transformers", "safetensors", "accelerate", "bitsandbytes", "huggingface_hub", "prompt_toolkit")


def run_doctor(as_json: bool) -> None:
    """Gather and print."""
    facts = _facts()
    if as_json:
        write_json(facts)
    else:
        pairs([(name.replace("_", " "), _plain(value)) for name, value in facts.items()])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "-" if value is None else str(value)


def _facts() -> dict[str, Any]:
    import torch

    from deltamem.adapter import shipped_adapters
    from deltamem.backbones.catalog import CATALOG
    from deltamem.backbones.fetch import local_path
    from deltamem.backbones.load import default_backbone, default_quantization, pick_device
    from deltamem.paths import cache_dir, profiles_dir
    from deltamem_cli.opening import CPU_CONTEXT, GPU_CONTEXT

    device = pick_device()
    name = default_backbone()
    return {
        "deltamem": __version__,
        "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
        "packages": {package: _version(package) for package in _PACKAGES},
        "device": _device(torch, device),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "default_backbone": name,
        "default_adapter": CATALOG[name].adapter,
        "default_quantization": default_quantization(device),
        "default_context": CPU_CONTEXT if device.type == "cpu" else GPU_CONTEXT,
        "backbone_path": str(local_path(name) or "not fetched yet"),
        "shipped_adapters": ", ".join(shipped_adapters()) or None,
        "profiles": str(profiles_dir()),
        "cache": str(cache_dir()),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device(torch: Any, device: Any) -> str:
    if device.type != "cuda":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"cpu ({capability})" if device.type == "cpu" else str(device)
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()} ({free / 1e9:.1f} of {total / 1e9:.1f} GB free)"


def _memory() -> str | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free"
