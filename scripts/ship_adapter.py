"""Put a trained adapter into the package, as small as it can be: `python scripts/ship_adapter.py RUN NAME`."""

from __future__ import annotations

import sys

from deltamem.adapter import SHIPPED, load_adapter, ship_adapter, shipped_adapters, small_tensors


def main(run: str, name: str) -> None:
    """Copy the adapter in directory `run` to `deltamem/adapters/NAME`; its card is to be written by hand."""
    config, tensors = load_adapter(run)
    ship_adapter(name, config, small_tensors(config, tensors), [other for other in shipped_adapters() if other != name])
    print(f"{name}: {sum(p.stat().st_size for p in (SHIPPED / name).iterdir()):,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
