"""The profile file: one `.safetensors` holding a state and saying what it belongs to. It holds no text of a chat.

Tensors: ``state`` (layers, heads, r, r) float32 and ``state_before`` of the same shape, the state before the last
turn. Metadata: the fields of `ProfileInfo`, as strings. The file loads with the safetensors library alone, and looking
at one takes no torch: states become tensors only where they are asked for as such.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from deltamem.errors import ProfileError, StateError, shown
from deltamem.inspection import Matrices
from deltamem.paths import write_private

if TYPE_CHECKING:
    from deltamem.state import MemoryState


FORMAT = "deltamem-profile"
VERSION = 1
_LARGEST = 256 * 1024 * 1024
"""A state of 100 layers, 64 heads and rank 64 is a tenth of this; anything larger is no profile."""

_LATER = ("entry", "adapters_before")
"""What files do not say that were made before there was a history, or a way to change the adapter."""
_LONGEST = 64 * 1024
"""Characters of a description: JSON takes many times its length in memory, and real ones have some hundreds."""


def now() -> str:
    """The time in UTC, to the second, as it is written to profiles."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class ProfileInfo:
    """What a profile says about itself.

    Attributes:
        backbone: name of the backbone it was made with.
        backbone_fingerprint: see `backbones.load.backbone_fingerprint`.
        adapter: name of the adapter.
        adapter_fingerprint: see `adapter.adapter_fingerprint`.
        adapter_config: the adapter's live options.
        layers: indices of the adapted layers.
        turns: turns written.
        tokens: tokens written.
        created: when the first turn was saved, UTC.
        updated: when the last one was.
        title: a line by the user; empty at first.
        entry: number of this state in the profile's history; 0 where it has none.
        adapters_before: fingerprints of adapters it was made with and that wrote just what its adapter reads.
    """

    backbone: str
    backbone_fingerprint: str
    adapter: str
    adapter_fingerprint: str
    adapter_config: dict[str, Any]
    layers: tuple[int, ...]
    turns: int = 0
    tokens: int = 0
    created: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    title: str = ""
    entry: int = 0
    adapters_before: tuple[str, ...] = ()

    @property
    def adapters(self) -> set[str]:
        """Fingerprints of all adapters to which its numbers mean the same."""
        return {self.adapter_fingerprint, *self.adapters_before}

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"layers": list(self.layers), "adapters_before": list(self.adapters_before)}


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile in memory.

    Attributes:
        info: what it says about itself.
        matrices: the state.
        matrices_before: the state before the last turn.
    """

    info: ProfileInfo
    matrices: Matrices
    matrices_before: Matrices

    @classmethod
    def of(cls, info: ProfileInfo, state: MemoryState, before: MemoryState) -> Profile:
        """A profile from states of batch 1."""
        return cls(info, state.matrices(), before.matrices())

    @property
    def state(self) -> MemoryState:
        """The state, batch 1."""
        return _as_state(self.matrices, self.info.layers)

    @property
    def before(self) -> MemoryState:
        """The state before the last turn, batch 1."""
        return _as_state(self.matrices_before, self.info.layers)

    def after_turn(self, state: MemoryState, before: MemoryState, tokens: int, turns: int = 1) -> Profile:
        """The profile a turn later."""
        info = replace(self.info, turns=self.info.turns + turns, tokens=self.info.tokens + tokens, updated=now())
        return Profile.of(info, state, before)

    def check_fits(self, backbone: str, backbone_fingerprint: str, adapter: str, adapter_fingerprint: str) -> None:
        """Refuse a backbone or an adapter other than the profile's own.

        Raises:
            ProfileError: they differ; the message has both names.
        """
        if self.info.backbone_fingerprint != backbone_fingerprint:
            raise ProfileError(
                f"this profile was made with the backbone {self.info.backbone}, and {backbone} is another; "
                f"use --backbone {self.info.backbone} or another profile"
            )
        if self.info.adapter_fingerprint != adapter_fingerprint:
            raise ProfileError(
                f"this profile was made with the adapter {self.info.adapter} "
                f"({self.info.adapter_fingerprint}), and {adapter} ({adapter_fingerprint}) is another; "
                f"use --adapter {self.info.adapter} or another profile"
            )


def _as_state(matrices: Matrices, layers: tuple[int, ...]) -> MemoryState:
    from deltamem.state import MemoryState

    return MemoryState.of(matrices, layers)


def save_profile(path: Path, profile: Profile) -> None:
    """Write a profile atomically and durably, 0600.

    Raises:
        StateError: the state is not finite; nothing was written.
        ProfileError: the file can't be written.
    """
    if not np.isfinite(profile.matrices).all():
        raise StateError("the memory holds NaN or infinite numbers and was not saved")
    metadata = {"format": FORMAT, "version": str(VERSION)}
    for key, value in profile.info.to_dict().items():
        metadata[key] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    tensors = {"state": profile.matrices, "state_before": profile.matrices_before}
    try:
        write_private(path, save(tensors, metadata=metadata))
    except OSError as error:
        raise ProfileError(f"can't save {path}: {error.strerror or error}") from None


def load_profile(path: Path) -> Profile:
    """Read and check a profile. The file is never changed.

    Raises:
        ProfileError: it is missing, damaged, of another format or version, or holds numbers that are not finite.
    """
    try:
        size = path.stat().st_size
        if path.is_symlink():
            raise ProfileError(f"{path} is a link, and only plain files are read; name what it points to instead")
    except FileNotFoundError:
        raise ProfileError(f"there is no profile {path}") from None
    except OSError as error:
        raise ProfileError(f"can't read {path}: {error.strerror}") from None
    if not path.is_file() or size > _LARGEST:
        raise ProfileError(f"{path} is no profile: not a file of a profile's size")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check_header(path, metadata)
            info = _read_info(metadata)
            expected = _shape(info)
            tensors = {}
            for name in ("state", "state_before"):
                view = file.get_slice(name)
                if view.get_dtype() != "F32" or tuple(view.get_shape()) != expected:
                    raise ProfileError(f"{path}: {name} is not the float32 tensor {expected} it should be")
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError, UnicodeDecodeError):
        raise ProfileError(f"{path} is damaged or no profile; it was left as it is") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        raise ProfileError(f"{path}: its description is incomplete or damaged; it was left as it is") from None
    if not all(np.isfinite(t).all() for t in tensors.values()):
        raise ProfileError(f"{path} holds NaN or infinite numbers; it was left as it is")
    return Profile(info, tensors["state"], tensors["state_before"])


def _check_header(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ProfileError(f"{path} is a safetensors file, but not a deltamem profile")
    if metadata.get("version") != str(VERSION):
        raise ProfileError(
            f"{path} has format version {shown(metadata.get('version'))}; this deltamem reads {VERSION}, so update it"
        )


def _read_info(metadata: dict[str, str]) -> ProfileInfo:
    if sum(map(len, metadata.values())) > _LONGEST:
        raise ValueError("a description too long to be true")
    values: dict[str, Any] = {}
    for f in fields(ProfileInfo):
        if f.name in _LATER and f.name not in metadata:
            continue
        values[f.name] = metadata[f.name] if f.type == "str" else json.loads(metadata[f.name])
    values["layers"] = tuple(values["layers"])
    values["adapters_before"] = tuple(values.get("adapters_before", ()))
    numbers = (*values["layers"], values["turns"], values["tokens"], values.get("entry", 0))
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError("counts are not whole numbers")
    if not isinstance(values["adapter_config"], dict):
        raise TypeError("adapter_config is not an object")
    if not all(isinstance(before, str) for before in values["adapters_before"]):
        raise TypeError("adapters_before is not a list of fingerprints")
    return ProfileInfo(**values)


def _shape(info: ProfileInfo) -> tuple[int, ...]:
    rank, heads = info.adapter_config["rank"], info.adapter_config["num_state_heads"]
    return (len(info.layers), heads, rank, rank)


def empty_profile(info: ProfileInfo) -> Profile:
    """A profile with nothing in it yet."""
    nothing = np.zeros(_shape(info), np.float32)
    return Profile(info, nothing, nothing)
