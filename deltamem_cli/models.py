"""`deltamem models`: the named backbones, fetching one, and where it lies."""

from __future__ import annotations

from deltamem.backbones.catalog import CATALOG
from deltamem.errors import BackboneError
from deltamem_cli.terminal import bars, notice, out, table, write, write_json


def run_list(as_json: bool) -> None:
    """All aliases."""
    from deltamem.backbones.fetch import local_path

    found = [(entry, local_path(name)) for name, entry in CATALOG.items()]
    if as_json:
        write_json([{**entry.to_dict(), "path": str(path) if path else None} for entry, path in found])
        return
    rows = [
        (e.name, e.repository, e.revision[:8], e.licence, f"{e.download_bytes / 1e6:.0f} MB", e.adapter,
         "yes" if path else "no")
        for e, path in found
    ]  # fmt: skip
    table(("name", "source", "revision", "licence", "size", "adapter", "here"), rows, right=("size",))
    out.print()
    notice("Any directory or hub id of a Hugging Face model works as well.")


def run_pull(name: str) -> None:
    """Fetch a backbone."""
    from deltamem.backbones.fetch import fetch

    with bars() as report:
        path = fetch(name, report)
    notice(f"{name} is in {path}")


def run_path(name: str) -> None:
    """Print a backbone's directory."""
    from deltamem.backbones.fetch import local_path

    path = local_path(name)
    if path is None:
        raise BackboneError(f"{name} is not on this machine; deltamem models pull {name} fetches it")
    write(f"{path}\n")
