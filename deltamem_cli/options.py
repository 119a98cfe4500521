"""Options that several commands share, with their help."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class QuantizeChoice(str, Enum):
    """How the backbone's weights are held."""

    auto = "auto"
    nf4 = "nf4"
    int8 = "int8"
    none = "none"


class CompileChoice(str, Enum):
    """Whether the call for one token is recorded and replayed."""

    auto = "auto"
    on = "on"
    off = "off"


class EvalTask(str, Enum):
    """What `deltamem eval` can ask."""

    recall = "recall"
    ordinary = "ordinary"
    perplexity = "perplexity"
    locomo = "locomo"
    hotpotqa = "hotpotqa"
    squad = "squad"
    memoryagentbench = "memoryagentbench"
    jsonl = "jsonl"


class RepliesChoice(str, Enum):
    """Who replies in the histories of an evaluation."""

    scripted = "scripted"
    own = "own"


class MemoryChoice(str, Enum):
    """What turns do with the memory."""

    on = "on"
    read = "read"
    off = "off"


def complete_profiles(incomplete: str) -> list[str]:
    """Names of profiles for tab completion; looks at the folder only."""
    from deltamem.paths import profiles_dir

    folder = profiles_dir()
    names = (p.name.removesuffix(".safetensors") for p in folder.glob("*.safetensors")) if folder.is_dir() else ()
    return sorted(n for n in names if n.startswith(incomplete) and not n.startswith("."))


def complete_backbones(incomplete: str) -> list[str]:
    """Aliases of backbones for tab completion."""
    from deltamem.backbones.catalog import CATALOG

    return [name for name in CATALOG if name.startswith(incomplete)]


BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        "-b",
        help="Alias, directory or hub id. Default: what suits this machine (deltamem doctor says which).",
        autocompletion=complete_backbones,
    ),
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter name, directory or hub id; none: chat with the frozen backbone."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
QuantizeOption = Annotated[
    QuantizeChoice, typer.Option("--quantize", help="Weights in 4 bit (nf4), 8 bit (int8) or as they are (none).")
]
ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        "-p",
        help="Name of the memory profile, or a path ending in .safetensors.",
        autocompletion=complete_profiles,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ContextOption = Annotated[
    int | None, typer.Option("--context", min=128, help="Context window in tokens. Default: 2048 on a CPU, 8192 else.")
]
