"""Imports run one way: the command line knows the library, and what knows the whole knows the parts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# From what knows only tensors up to what knows the whole. A module may import what stands before it, or beside it.
ORDER = [
    {"errors", "processes", "paths", "pictures", "inspection"},
    {"config"},
    {"recurrence"},
    {"layer", "segments", "key_pairs", "readers", "replies", "choices"},
    {"attach"},
    {"state", "token_steps", "side_by_side", "call"},
    {"running"},
    {"told_aside"},
    {"runtime", "shared_tensors"},
    {"adapter"},
    {"memory"},
    {"chat_format", "benchmarking"},
    {"backbones"},
    {"session"},
    {"profiles"},
    {"profile_chat"},
    {"episodes"},
    {"evaluation"},
    {"training"},
]
RANK = {name: i for i, level in enumerate(ORDER) for name in level}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str | None:
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "deltamem" and len(pieces) > 1 and pieces[1] in RANK else None


def test_the_library_knows_no_terminal() -> None:
    for path in (ROOT / "deltamem").rglob("*.py"):
        bad = {m for m in imports(path) if m.split(".")[0] in {"deltamem_cli", "rich", "typer", "prompt_toolkit"}}
        assert not bad, (path, bad)


def test_imports_run_from_the_whole_to_the_parts() -> None:
    for path in (ROOT / "deltamem").rglob("*.py"):
        own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if own is None:
            continue  # the package's own __init__ names everything, lazily
        for name in imports(path):
            other = part(name)
            assert other is None or RANK[other] <= RANK[own], f"{path} imports {name}"


def test_every_part_has_its_place() -> None:
    parts = {p.stem if p.suffix else p.name for p in (ROOT / "deltamem").iterdir()}
    assert parts - {"__init__", "__pycache__", "py", "adapters", "py.typed"} <= set(RANK) | {"py"}


def test_the_command_line_does_no_tensor_arithmetic() -> None:
    for path in (ROOT / "deltamem_cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bad = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult)]
        assert not bad and "torch.nn" not in imports(path), path


def test_importing_the_package_loads_no_torch_and_opens_no_socket() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "import deltamem, deltamem_cli.app\n"
        "assert 'torch' not in sys.modules\n"
        "import deltamem.training.run, deltamem.profile_chat, deltamem_cli.repl\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
