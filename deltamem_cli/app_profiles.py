"""The commands of `deltamem profiles`: names, options and late imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.options import JsonOption, complete_profiles

profiles_app = typer.Typer(rich_markup_mode=None, help="List and manage memory profiles.")
NameArgument = Annotated[str, typer.Argument(help="Name or path of a profile.", autocompletion=complete_profiles)]


@profiles_app.callback(invoke_without_command=True, epilog="Example: deltamem profiles show work")
def profiles(context: typer.Context, as_json: JsonOption = False) -> None:
    """List and manage memory profiles."""
    if context.invoked_subcommand is None:
        from deltamem_cli.profiles import run_list

        run_list(as_json)


@profiles_app.command("list", epilog="Example: deltamem profiles list --json")
def profiles_list(as_json: JsonOption = False) -> None:
    """List profiles: backbone, turns, last used, size."""
    from deltamem_cli.profiles import run_list

    run_list(as_json)


@profiles_app.command("show", epilog="Example: deltamem profiles show work --json")
def profiles_show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what a profile says about itself."""
    from deltamem_cli.profiles import run_show

    run_show(name, as_json)


@profiles_app.command("upgrade", epilog="Example: deltamem profiles upgrade work")
def profiles_upgrade(name: NameArgument) -> None:
    """Have a newer adapter read a profile, where it reads what the profile's own one wrote."""
    from deltamem_cli.profiles import run_upgrade

    run_upgrade(name)


@profiles_app.command("copy", epilog="Example: deltamem profiles copy work work-before")
def profiles_copy(
    source: NameArgument, target: Annotated[str, typer.Argument(help="Name or path of the copy.")]
) -> None:
    """Copy a profile."""
    from deltamem_cli.profiles import run_copy

    run_copy(source, target)


@profiles_app.command("rename", epilog="Example: deltamem profiles rename work office")
def profiles_rename(source: NameArgument, target: Annotated[str, typer.Argument(help="The new name.")]) -> None:
    """Give a profile another name."""
    from deltamem_cli.profiles import run_rename

    run_rename(source, target)


@profiles_app.command("delete", epilog="Example: deltamem profiles delete work --yes")
def profiles_delete(
    name: NameArgument, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Delete a profile."""
    from deltamem_cli.profiles import run_delete

    run_delete(name, yes)


@profiles_app.command("log", epilog="Example: deltamem profiles log work")
def profiles_log(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show the turns a profile can go back to."""
    from deltamem_cli.profiles import run_log

    run_log(name, as_json)


@profiles_app.command("rewind", epilog="Example: deltamem profiles rewind work --to 12")
def profiles_rewind(
    name: NameArgument, to: Annotated[str, typer.Option("--to", help="A turn's number, or a label.")]
) -> None:
    """Go to an earlier turn, or to a later one; nothing is lost."""
    from deltamem_cli.profiles import run_rewind

    run_rewind(name, to)


@profiles_app.command("branch", epilog="Example: deltamem profiles branch work trip --at 12")
def profiles_branch(
    name: NameArgument,
    target: Annotated[str, typer.Argument(help="Name or path of the new profile.")],
    to: Annotated[str | None, typer.Option("--at", help="A turn's number, or a label; default: now.")] = None,
) -> None:
    """Begin a new profile where this one is, or was."""
    from deltamem_cli.profiles import run_branch

    run_branch(name, target, to)


@profiles_app.command("tag", epilog="Example: deltamem profiles tag work before-move")
def profiles_tag(name: NameArgument, label: Annotated[str, typer.Argument(help="What to call it.")]) -> None:
    """Give the present state a name to go back to; it is kept until it is pruned."""
    from deltamem_cli.profiles import run_tag

    run_tag(name, label)


@profiles_app.command("diff", epilog="Example: deltamem profiles diff work trip")
def profiles_diff(
    one: NameArgument,
    other: Annotated[str, typer.Argument(help="Name or path of another profile.", autocompletion=complete_profiles)],
    as_json: JsonOption = False,
) -> None:
    """Show how far apart two profiles are."""
    from deltamem_cli.inspect_state import run_diff

    run_diff(one, other, as_json)


@profiles_app.command("prune", epilog="Example: deltamem profiles prune work --keep 20")
def profiles_prune(
    name: NameArgument,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Latest states that stay, besides labelled ones.")] = 0,
) -> None:
    """Let go of a profile's past."""
    from deltamem_cli.profiles import run_prune

    run_prune(name, keep)


@profiles_app.command("merge", epilog="Example: deltamem profiles merge work trip --weight 0.3")
def profiles_merge(
    name: NameArgument,
    other: Annotated[str, typer.Argument(help="Profile to take in; it stays.", autocompletion=complete_profiles)],
    weight: Annotated[float, typer.Option("--weight", min=0, max=1, help="Share of the other one.")] = 0.5,
) -> None:
    """Take another profile's memory in. What lay where the other one wrote is lost; the history keeps it."""
    from deltamem_cli.profiles import run_merge

    run_merge(name, other, weight)


@profiles_app.command("export", epilog="Example: deltamem profiles export work work.deltamem")
def profiles_export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="File to write: .deltamem with the history, .safetensors without.")],
) -> None:
    """Write a profile, its history and a card to one checksummed file."""
    from deltamem_cli.profiles import run_export

    run_export(name, file)


@profiles_app.command("import", epilog="Example: deltamem profiles import work.deltamem --name office")
def profiles_import(
    file: Annotated[Path, typer.Argument(help="A .deltamem or .safetensors file.")],
    name: Annotated[str | None, typer.Option("--name", help="Name to give it; default: the file's.")] = None,
) -> None:
    """Take an exported profile in under a name, once it has been checked."""
    from deltamem_cli.profiles import run_import

    run_import(file, name)
