"""Adapters on disk: the native layout, the published one, and whether one fits a backbone."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltamem.attach import AttentionSite
from deltamem.config import PROJECTIONS, DeltaMemConfig
from deltamem.errors import AdapterError, ConfigError, shown
from deltamem.layer import DeltaLayer
from deltamem.paths import user_path
from deltamem.shared_tensors import SHARED_FILE, held_by, shared_tensors

CONFIG_FILE = "delta_mem_config.json"
NATIVE_FILE = "delta_mem_adapter.safetensors"
PUBLISHED_FILE = "delta_mem_adapter.pt"
SHIPPED = Path(__file__).parent / "adapters"
"""Adapters that come with the package, a directory each."""


def load_adapter(name_or_path: str | Path) -> tuple[DeltaMemConfig, dict[str, Tensor]]:
    """Read an adapter directory, or a hub repository in the same layout.

    A published ``.pt`` is read with ``weights_only=True``: code in it is refused, not run.

    Returns:
        The configuration and the tensors under their published names.

    Raises:
        AdapterError: nothing is there, or it can't be read.
    """
    directory = resolve_adapter(name_or_path)
    try:
        config = DeltaMemConfig.from_json_file(directory / CONFIG_FILE)
    except ConfigError as error:
        raise AdapterError(f"adapter {name_or_path}: {error}") from None
    native, published = directory / NATIVE_FILE, directory / PUBLISHED_FILE
    try:
        if native.is_file():
            tensors = shared_tensors(directory, _weights_of(shipped_adapters())) | load_file(native)
        elif published.is_file():
            tensors = torch.load(published, map_location="cpu", weights_only=True)
        else:
            raise AdapterError(f"adapter {name_or_path} has neither {NATIVE_FILE} nor {PUBLISHED_FILE}")
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise AdapterError(f"adapter {name_or_path}: its weights file is damaged or not an adapter") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()
    ):
        raise AdapterError(f"adapter {name_or_path}: its weights file does not hold named tensors")
    return config, tensors


def shipped_adapters() -> list[str]:
    """Names of the adapters that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def _weights_of(names: Sequence[str]) -> dict[str, Path]:
    """The weights files of adapters that ship."""
    return {name: SHIPPED / name / NATIVE_FILE for name in names}


def resolve_adapter(name_or_path: str | Path) -> Path:
    """The directory of an adapter: a local one as it is, one that ships by its name, a hub id from the hub's cache.

    Raises:
        AdapterError: there is no such directory and it cannot be fetched.
    """
    path = user_path(str(name_or_path))
    if path.is_dir():
        return path
    name = str(name_or_path)
    if name in shipped_adapters():
        return SHIPPED / name
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise AdapterError(
            f"there is no adapter {shown(name)}: give a directory, a hub id, or one of {', '.join(shipped_adapters())}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files = [CONFIG_FILE, NATIVE_FILE, PUBLISHED_FILE]
    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=files, etag_timeout=5))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise AdapterError(
            f"adapter {name} is no local directory and can't be fetched from the hub ({type(error).__name__})"
        ) from None


def save_adapter(directory: str | Path, config: DeltaMemConfig, tensors: dict[str, Tensor]) -> None:
    """Write the native layout; each file is written beside and renamed."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    beside = target / (NATIVE_FILE + ".tmp")
    save_file(tensors, beside, metadata={"format": "deltamem-adapter"})
    beside.replace(target / NATIVE_FILE)
    (target / SHARED_FILE).unlink(missing_ok=True)
    _write_json(target / CONFIG_FILE, config.to_dict())


def ship_adapter(name: str, config: DeltaMemConfig, tensors: dict[str, Tensor], others: Sequence[str]) -> None:
    """Put an adapter into the package, without the tensors that `others`, which ship already, hold."""
    listed = held_by(_weights_of(others), tensors)
    shared = {tensor for names in listed.values() for tensor in names}
    save_adapter(SHIPPED / name, config, {k: v for k, v in tensors.items() if k not in shared})
    (SHIPPED / name / NATIVE_FILE).chmod(0o644)  # an installed package is for every user of a machine
    if listed:
        _write_json(SHIPPED / name / SHARED_FILE, listed)


def _write_json(path: Path, data: Any) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def small_tensors(config: DeltaMemConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of an adapter has to be kept, in bfloat16; corrections that are not made are left out."""
    unused = tuple(f".delta_{p}_proj" for p in PROJECTIONS if p not in config.delta_heads)
    return {k: v.to(torch.bfloat16).contiguous() for k, v in tensors.items() if not k.endswith(unused)}


def layer_tensors(
    config: DeltaMemConfig, tensors: dict[str, Tensor], sites: Sequence[AttentionSite], name: str
) -> list[dict[str, Tensor]]:
    """An adapter's tensors sorted into a backbone's layers.

    Raises:
        AdapterError: the two do not go together; the message says what differs.
    """
    theirs = {key.rpartition(".")[0] for key in tensors}
    ours = {site.path for site in sites}
    if theirs != ours:
        sample_theirs, sample_ours = min(theirs, default="none"), min(ours)
        raise AdapterError(
            f"adapter {name} does not fit this backbone: it has weights for {len(theirs)} attention modules "
            f"({shown(sample_theirs)}, ...), the backbone has {len(ours)} ({sample_ours}, ...)"
        )
    result = []
    for site in sites:
        own = {}
        expected = DeltaLayer.shapes(config, site.hidden_size, site.out_features)
        unused = {f"delta_{p}_proj" for p in PROJECTIONS if p not in config.delta_heads}
        for key, shape in expected.items():
            tensor = tensors.get(f"{site.path}.{key}")
            if tensor is None and key in unused:
                tensor = torch.zeros(shape)  # what is not corrected may be left out
            if tensor is None:
                raise AdapterError(f"adapter {name} lacks the tensor {site.path}.{key}")
            if tuple(tensor.shape) != shape:
                raise AdapterError(
                    f"adapter {name} does not fit this backbone: {site.path}.{key} is {tuple(tensor.shape)}, "
                    f"here it would be {shape}"
                )
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"adapter {name} has NaN or infinite numbers in {site.path}.{key}")
            own[key] = tensor.float()
        extra = [k for k in tensors if k.rpartition(".")[0] == site.path and k.rpartition(".")[2] not in expected]
        if extra:
            raise AdapterError(f"adapter {name} has a tensor its configuration does not mention: {shown(extra[0])}")
        result.append(own)
    return result


def adapter_fingerprint(config: DeltaMemConfig, tensors: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any number or any live option of the adapter does."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
