"""`deltamem train-adapter`: a run with a bar, its evaluations, and the card at the end."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltamem.errors import DataError
from deltamem_cli.huge_pages import use_huge_pages
from deltamem_cli.terminal import err, notice, table

_FURTHER = ("number_steps", "chat_steps", "people_steps", "begin_steps")
"""Steps after all others that go on with an adapter."""
_OF_ITS_OWN = 0.8
"""Most of the steps that are cached where there is other data than the generator's: that wants whole ones."""
_WORKERS = 6
"""Processes beside a GPU, where there are so many cores."""
_EVERY = 60.0
"""Seconds between two lines about progress in a log."""


@dataclass(frozen=True)
class TrainOptions:
    """The options of `deltamem train-adapter`, as in its help; None leaves a value to the preset."""

    output: Path
    backbone: str | None
    preset: str
    data: list[str]
    start: Path | None
    resume: bool
    workers: int | None
    device: str
    dtype: str
    quantize: str
    checkpointing: bool
    tensorboard: bool
    warm_start: bool | None
    config: dict[str, Any]
    recipe: dict[str, Any]


def run_train(options: TrainOptions) -> None:
    """Train, evaluate, and leave the adapter with its card."""
    use_huge_pages()
    import torch

    from deltamem.training.curves import draw_curves
    from deltamem.training.run import EXTENSIONS, KEYS_OF, prepare, write_card
    from deltamem.training.team import Team
    from deltamem_cli.opening import dtype_of, open_backbone
    from deltamem_cli.signals import finishing

    preset = chosen_preset(options)
    changed = sorted(name for name in options.config if name not in (*EXTENSIONS, *KEYS_OF, "num_state_heads", "rank"))
    if options.start is not None and changed:
        raise DataError("--from keeps the adapter's own configuration: leave out " + ", ".join(changed))
    team = Team(cpu=options.device == "cpu")
    torch.manual_seed(preset.recipe.seed)
    device = team.device or options.device
    backbone = open_backbone(options.backbone, device, options.quantize, dtype_of(options.dtype))
    with _Bar(preset.recipe.steps, shown=team.rank == 0) as bar:
        trainer = prepare(
            backbone,
            preset,
            options.output,
            options.data,
            options.resume,
            options.start,
            options.checkpointing,
            options.tensorboard,
            team,
            bar.preparing,
            workers_for(options.workers, backbone.device.type),
        )
        rank = trainer.passes.memory.config.rank
        if options.start is not None and options.config.get("rank", rank) != rank:
            raise DataError(f"--from keeps the adapter's rank of {rank}, or makes it larger: leave out --rank")
        if trainer.step and team.rank == 0:
            notice(f"Going on after step {trainer.step}.")
        with finishing(trainer) as asked:
            for report in trainer.run():
                bar.step(report)
        if trainer.stopped:
            if team.rank == 0:
                with suppress(OSError):  # the terminal may be what went away
                    notice(f"Stopped after step {trainer.step}; the same command with --resume goes on from there.")
            raise SystemExit(128 + (asked or [signal.SIGINT])[0])
        results = final_figures(trainer)
    if team.rank:
        return
    if not preset.recipe.over(trainer.step, trainer.seconds):
        notice(f"Stopped after step {trainer.step}: {preset.recipe.patience} evaluations without a better one.")
    command = "deltamem train-adapter " + shlex.join(sys.argv[2:])
    write_card(options.output, backbone, trainer, command, results)
    show_results(results)
    curves = draw_curves(options.output)
    if curves is not None:
        notice(f"The curves are in {curves}.")
    notice(f"The adapter is in {options.output}; try it: deltamem chat --adapter {options.output}")


def workers_for(asked: int | None, device: str) -> int:
    """Processes that make and draw data: on a GPU a step takes less time than drawing for it, on a CPU it needs all."""
    if asked is not None:
        return asked
    return min(_WORKERS, max(0, (os.cpu_count() or 1) - 2)) if device == "cuda" else 0


def chosen_preset(options: TrainOptions) -> Any:
    """The preset with what was asked for in its place.

    Raises:
        DataError: a value is out of range.
    """
    from deltamem.training.presets import PRESETS

    if options.preset not in PRESETS:
        raise DataError(f"there is no preset {options.preset!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[options.preset]
    recipe = dict(options.recipe)
    changed = dict(options.config)
    if changed.get("keys") == "own":
        changed = {"own_share": 1.0, "fading": 0.0} | changed  # those are of keys in pairs
    elif options.start is not None:
        # The adapter's own, where nobody asks for others.
        own = {"own_share": 1.0, "fading": 0.0, "base_queries": bool(recipe.get("new_keys"))}
        changed = own | changed
    if recipe.get("fit_erase"):
        changed["learned_erase"] = True
    if changed.get("corrections") == "own":
        if recipe.get("joint_steps"):
            raise DataError("--joint-steps teach a gate of all layers at once, and --corrections own has none")
        recipe["joint_steps"], changed["joint_gate"] = 0, False  # no layer can wait for the others
    elif "joint_steps" in recipe or options.start is not None:
        changed["joint_gate"] = bool(recipe.get("joint_steps"))
    config = replace(preset.config, **changed)
    if config.corrections == "last":
        config = replace(config, alpha=preset.config.alpha * config.rank / preset.config.rank)
    if "cached_steps" not in recipe:
        # The preset's share of however many steps there are; only token writes can be cached.
        share = 0.0 if config.writes_segments else preset.recipe.cached_steps / preset.recipe.steps
        if share > _OF_ITS_OWN and any(not source.startswith("synthetic") for source in options.data):
            share = _OF_ITS_OWN
        recipe["cached_steps"] = round(share * recipe.get("steps", preset.recipe.steps))
    if options.start is not None:
        # An adapter's are trained already.
        recipe.setdefault("easy_steps", 0)
        recipe.setdefault("key_steps", 0)
        recipe.setdefault("say_steps", 0)
        recipe.setdefault("joint_steps", 0)
    elif any(recipe.get(name) for name in ("gate_steps", "fit_erase", *_FURTHER, "keep_writing", "new_keys")):
        raise DataError(
            "--gate-steps, --fit-erase, --number-steps, --chat-steps, --people-steps, --begin-steps, --keep-writing "
            "and --new-keys go on with an adapter; give --from"
        )
    writing = ("key_steps", "say_steps", "number_steps", "people_steps", "new_keys")
    written_anew = any(recipe.get(name) for name in writing)
    if recipe.get("keep_writing") and (written_anew or options.config.keys() & {"rank", "own_share", "fading"}):
        raise DataError(
            "--keep-writing leaves keys and values alone; leave out --key-steps, --say-steps, --number-steps, "
            "--people-steps, --new-keys, --rank, --own-share and --fading"
        )
    alone = [recipe.get(name) for name in ("gate_steps", "fit_erase", "joint_steps", *_FURTHER)]
    alone.append(recipe.get("read_steps", preset.recipe.read_steps))
    if recipe.get("steps") == 0 and not any(alone):
        raise DataError(
            "--steps 0 leaves nothing to train; give --read-steps, --joint-steps, --number-steps, --chat-steps, "
            "--people-steps, --begin-steps, --gate-steps or --fit-erase, or more steps"
        )
    joint_steps = recipe.get("joint_steps", preset.recipe.joint_steps)
    if joint_steps and config.joint_gate and not recipe.get("ordinary", preset.recipe.ordinary):
        raise DataError("--joint-steps are on ordinary talk; leave out --ordinary 0, or give --joint-steps 0")
    if "learning_rate" in recipe and not recipe["learning_rate"] > 0:
        raise DataError("--learning-rate must be above 0")
    if "batch" in recipe and "questions" not in recipe:
        recipe["questions"] = 2 * recipe["batch"]
    if any(value < 0 for name, value in recipe.items() if name.endswith("_weight")):
        raise DataError("weights of the objective can't be below 0")
    return replace(
        preset,
        config=config,
        recipe=replace(preset.recipe, **recipe),
        warm_start=preset.warm_start if options.warm_start is None else options.warm_start,
    )


def layer_numbers(text: str) -> tuple[int, ...]:
    """Layers from ``0,5,10-20``.

    Raises:
        DataError: it is something else.
    """
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise DataError(f"--layers takes numbers and ranges such as 0,5,10-20, not {text!r}") from None
    return tuple(numbers)


def final_figures(trainer: Any) -> dict[str, dict[str, Any]]:
    """Held-out recall by number of facts, beside what the frozen backbone answers."""
    from deltamem.training.heldout import heldout_recall

    results = heldout_recall(trainer.passes, 3 * trainer.recipe.eval_questions, conditions=("memory", "frozen"), seed=2)
    return {
        facts: {**row["memory"], "frozen_named": row["frozen"]["named"], "chance": 1 / int(facts)}
        for facts, row in results.items()
    }


def show_results(results: dict[str, dict[str, Any]]) -> None:
    """The figures as a table."""
    rows = [
        (facts, s["asked"], f"{s['exact']:.1%}", f"{s['named']:.1%}", f"{s['chance']:.1%}", f"{s['frozen_named']:.1%}")
        for facts, s in results.items()
    ]
    columns = ("facts told", "questions", "exact", "value named", "picking at random", "frozen")
    table(columns, rows, right=columns)


class _Bar:
    """One bar for the preparation and one for the steps, with the loss beside it."""

    def __init__(self, steps: int, shown: bool = True) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        text = TextColumn("{task.description}")
        self._view = Progress(
            text, BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn(),
            TimeRemainingColumn(), console=err, disable=not shown
        )  # fmt: skip
        self._steps = steps
        self._shown = shown
        self._warm: Any = None
        self._task: Any = None
        # Where no bar can be drawn, in a log, a line now and then.
        self._lines = shown and not err.is_terminal
        self._stage, self._said = "", 0.0

    def __enter__(self) -> _Bar:
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()

    def preparing(self, stage: str, share: float) -> None:
        """Progress of what comes before the steps, and after them."""
        if self._warm is None:
            self._warm = self._view.add_task(stage, total=100)
        self._view.update(self._warm, description=stage, completed=100 * share)
        self._line(stage, f"{stage}: {share:.0%}")

    def step(self, report: Any) -> None:
        """Progress of the training."""
        if self._task is None:
            if self._warm is not None:
                self._view.remove_task(self._warm)
                self._warm = None
            self._task = self._view.add_task("training", total=self._steps)
        now = f"stage {report.stage}, loss {report.loss:.2f}, values right {report.accuracy:.0%}"
        self._view.update(self._task, completed=report.step, description=now)
        self._line("training", f"step {report.step} of {self._steps}: {now}")
        if report.recall and self._shown:
            said = ", ".join(f"{n} facts {s['named']:.0%}" for n, s in report.recall.items())
            notice(f"step {report.step}: held-out recall {said}")

    def _line(self, stage: str, text: str) -> None:
        """Say it where there is no bar, at the beginning of a stage and then once a minute."""
        now = time.monotonic()
        if self._lines and (stage != self._stage or now - self._said > _EVERY):
            self._stage, self._said = stage, now
            notice(text)
