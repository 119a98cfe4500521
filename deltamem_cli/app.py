"""The Typer app: names, options and late imports, so that help and completion load no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deltamem import __version__
from deltamem.errors import DeltaMemError, shown
from deltamem_cli.app_models import models_app
from deltamem_cli.app_profiles import profiles_app
from deltamem_cli.app_research import bench, evaluate, train_adapter
from deltamem_cli.options import (
    AdapterOption,
    BackboneOption,
    CompileChoice,
    ContextOption,
    DeviceOption,
    JsonOption,
    MemoryChoice,
    ProfileOption,
    QuantizeChoice,
    QuantizeOption,
    complete_profiles,
)

app = typer.Typer(
    name="deltamem",
    help="Chat with a language model on your own machine, and have it remember you.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deltamem {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog='Example: deltamem chat --profile work   or   deltamem chat "What is my dog called?"')
def chat(
    prompt: Annotated[str | None, typer.Argument(help="Answer this and exit; without it, a chat begins.")] = None,
    profile: ProfileOption = "default",
    backbone: BackboneOption = None,
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System prompt.")] = None,
    memory: Annotated[MemoryChoice, typer.Option("--memory", help="Read and write, read only, or off.")] = (
        MemoryChoice.on
    ),
    read_only: Annotated[bool, typer.Option("--read-only", help="Read the profile and change nothing.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Piped input: each line is a turn.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Replies as plain text, no Markdown.")] = False,
    context: ContextOption = None,
    history: Annotated[int, typer.Option(min=1, help="Turns a profile can go back.")] = 200,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. Default: the model's own.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many tokens.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least probability relative to the best token.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repeats.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest reply in tokens (512).")] = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = QuantizeChoice.auto,
    compile: Annotated[
        CompileChoice, typer.Option("--compile", help="On a GPU, record the call for a token once and replay it.")
    ] = CompileChoice.auto,
) -> None:
    """Chat with memory: what is said is written into the profile, turn by turn."""
    from deltamem_cli.chat import ChatOptions, run_chat

    run_chat(
        ChatOptions(
            prompt=prompt,
            profile=profile,
            backbone=backbone,
            adapter=adapter,
            system=system,
            memory=memory.value,
            read_only=read_only,
            lines=lines,
            json=as_json,
            plain=plain,
            context=context,
            history=history,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            max_tokens=max_tokens,
            device=device,
            quantize=quantize.value,
            compile=compile.value,
        )
    )


@app.command(epilog="Example: deltamem remember notes.txt --profile work")
def remember(
    files: Annotated[list[Path], typer.Argument(help="Text files, or saved chats as JSON lines; - is standard input.")],
    profile: ProfileOption = "default",
    backbone: BackboneOption = None,
    adapter: AdapterOption = None,
    context: ContextOption = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = QuantizeChoice.auto,
    as_json: JsonOption = False,
) -> None:
    """Read text or a saved chat into a profile's memory."""
    from deltamem_cli.remember import run_remember

    run_remember(files, profile, backbone, adapter, context, device, quantize.value, as_json)


@app.command("inspect-state", epilog="Example: deltamem inspect-state work --layer 12")
def inspect_state(
    profile: Annotated[
        str, typer.Argument(help="Name or path of a profile.", autocompletion=complete_profiles)
    ] = "default",
    layer: Annotated[int | None, typer.Option("--layer", "-l", help="Draw this layer's matrices.")] = None,
    head: Annotated[int | None, typer.Option("--head", help="Draw this head's matrices.")] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", help="Compare with another profile.", autocompletion=complete_profiles)
    ] = None,
    turns: Annotated[bool, typer.Option("--turns", help="How it moved, turn by turn.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write all of it to one HTML file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw all layers to a picture file.")] = None,
    probe: Annotated[
        str | None, typer.Option("--probe", help="Show what the memory does to the answer; loads the backbone.")
    ] = None,
    backbone: BackboneOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    quantize: QuantizeOption = QuantizeChoice.auto,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a profile. How full, what changed, layer by layer; without --probe it loads no backbone."""
    if probe is not None:
        from deltamem_cli.probe import run_probe

        run_probe(profile, probe, backbone, adapter, device, quantize.value, as_json)
        return
    from deltamem_cli.inspect_state import InspectOptions, run_inspect

    run_inspect(InspectOptions(profile, layer, head, diff, turns, report, plot, as_json))


app.command("train-adapter", epilog="Example: deltamem train-adapter --backbone smollm2-135m --output my-adapter")(
    train_adapter
)
app.command(
    "eval", epilog="Example: deltamem eval recall --facts 1,4 --parts facts   or   deltamem eval squad dev.json"
)(evaluate)
app.command(epilog="Example: deltamem bench --lengths 256,1024")(bench)


@app.command(epilog="Example: deltamem doctor --json")
def doctor(as_json: JsonOption = False) -> None:
    """Print what belongs into a bug report: versions, device, folders, defaults."""
    from deltamem_cli.doctor import run_doctor

    run_doctor(as_json)


app.add_typer(profiles_app, name="profiles")
app.add_typer(models_app, name="models")


def main() -> None:
    """Run the command line; an error a person can do something about is one line, exit code 1."""
    try:
        app()
    except DeltaMemError as error:
        from deltamem_cli.terminal import fail

        fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # what the system refuses, wherever it happened
        from deltamem_cli.terminal import fail

        fail(f"{error.strerror or error}" + (f": {shown(error.filename)}" if error.filename else ""))
        sys.exit(1)
