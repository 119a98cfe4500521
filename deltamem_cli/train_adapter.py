"""`deltamem train-adapter`: a run with a bar, its evaluations, and the card at the end."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem.errors import DataError, DeltaMemError
from deltamem_cli.terminal import err, notice, table


@dataclass(frozen=True)
class TrainOptions:
    """The options of `deltamem train-adapter`, as in its help."""

    output: Path
    backbone: str | None
    data: list[Path]
    data_share: float
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    decay: float
    rank: int
    heads: int
    write: str
    update: str
    correct: str
    warm_start: bool
    seed: int
    resume: bool
    eval_every: int
    device: str
    dtype: str
    quantize: str


def run_train(options: TrainOptions) -> None:
    """Train, evaluate, and leave the adapter with its card."""
    import torch

    from deltamem.config import DeltaMemConfig
    from deltamem.episodes.episode import Episode, load_episodes
    from deltamem.training.recipe import Recipe
    from deltamem.training.run import prepare, write_card
    from deltamem_cli.opening import open_backbone

    if not 0 <= options.data_share <= 1:
        raise DataError("--data-share lies between 0 and 1")
    if not options.learning_rate > 0:
        raise DataError("--learning-rate must be above 0")
    own: list[Episode] = []
    for path in options.data:
        own += load_episodes(path)
    dtypes = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if options.dtype not in dtypes:
        raise DeltaMemError(f"--dtype takes auto, float32 or bfloat16, not {options.dtype!r}")
    config = DeltaMemConfig(
        rank=options.rank,
        num_state_heads=options.heads,
        memory_write_granularity=options.write,
        state_update_mode=options.update,
        delta_heads=tuple(options.correct),
        output_init="base_slice",
    )
    recipe = Recipe(
        steps=options.steps,
        batch=options.batch,
        questions=2 * options.batch,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        decay=options.decay,
        seed=options.seed,
        eval_every=options.eval_every,
    )
    torch.manual_seed(options.seed)
    backbone = open_backbone(options.backbone, options.device, options.quantize, dtypes[options.dtype])
    with _Bar(options.steps) as bar:
        trainer = prepare(
            backbone,
            config,
            recipe,
            options.output,
            own,
            options.data_share,
            options.warm_start,
            options.resume,
            bar.preparing,
        )
        if trainer.step:
            notice(f"Going on after step {trainer.step}.")
        for report in trainer.run():
            bar.step(report)
        results = final_figures(trainer)
    command = "deltamem train-adapter " + shlex.join(sys.argv[2:])
    write_card(options.output, backbone, trainer, command, results)
    show_results(results)
    notice(f"The adapter is in {options.output}; try it: deltamem chat --adapter {options.output}")


def final_figures(trainer: Any) -> dict[str, dict[str, Any]]:
    """Held-out recall by number of facts, beside what the frozen backbone answers."""
    from deltamem.training.heldout import heldout_recall

    results = heldout_recall(trainer.passes, 96, conditions=("memory", "frozen"), seed=2)
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

    def __init__(self, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        text = TextColumn("{task.description}")
        self._view = Progress(
            text, BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn(),
            TimeRemainingColumn(), console=err
        )  # fmt: skip
        self._steps = steps
        self._warm: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        self._view.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._view.stop()

    def preparing(self, stage: str, share: float) -> None:
        """Progress of the warm start."""
        if self._warm is None:
            self._warm = self._view.add_task(stage, total=100)
        self._view.update(self._warm, description=stage, completed=100 * share)

    def step(self, report: Any) -> None:
        """Progress of the training."""
        if self._task is None:
            if self._warm is not None:
                self._view.remove_task(self._warm)
            self._task = self._view.add_task("training", total=self._steps)
        self._view.update(
            self._task,
            completed=report.step,
            description=f"stage {report.stage}, loss {report.loss:.2f}, values right {report.accuracy:.0%}",
        )
        if report.recall:
            said = ", ".join(f"{n} facts {s['named']:.0%}" for n, s in report.recall.items())
            notice(f"step {report.step}: held-out recall {said}")
