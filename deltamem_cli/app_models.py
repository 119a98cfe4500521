"""The commands of `deltamem models`: names, options and late imports."""

from __future__ import annotations

from typing import Annotated

import typer

from deltamem_cli.options import JsonOption

models_app = typer.Typer(rich_markup_mode=None, help="List, fetch and find backbones.")


@models_app.callback(invoke_without_command=True, epilog="Example: deltamem models pull smollm2-135m")
def models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List, fetch and find backbones."""
    if context.invoked_subcommand is None:
        from deltamem_cli.models import run_list

        run_list(as_json)


@models_app.command("list", epilog="Example: deltamem models list --json")
def models_list(as_json: JsonOption = False) -> None:
    """List the named backbones."""
    from deltamem_cli.models import run_list

    run_list(as_json)


@models_app.command("pull", epilog="Example: deltamem models pull smollm2-135m")
def models_pull(name: Annotated[str, typer.Argument(help="Alias or hub id.")]) -> None:
    """Fetch a backbone, to be used offline from then on."""
    from deltamem_cli.models import run_pull

    run_pull(name)


@models_app.command("path", epilog="Example: deltamem models path smollm2-135m")
def models_path(name: Annotated[str, typer.Argument(help="Alias or hub id.")]) -> None:
    """Print where a backbone lies on this machine."""
    from deltamem_cli.models import run_path

    run_path(name)
