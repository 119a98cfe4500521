"""Train several adapters at once on one bank, to compare shapes of the state, or rates, on the same data.

    python benchmarks/train_together.py --output DIR --minutes 6 --bank 24000 --vocabulary 2 --questions 1024 \
        --run 8x1:rank=8 --run 16x1:rank=16 --run longer:from=smollm2-135m-v13,learning_rate=0.0015

Every run is a process of its own, and does what `deltamem train-adapter --preset places` does with a bank; that is
built once, by several processes, and lies on the device once. A run without `from` begins with the closed-form start
on some of the facts; its other options are those of `Recipe`, `rank` and `heads`. Adapters are in DIR/NAME, in
DIR/NAME-steps as they were before they were read anew (`--read-steps`). It is meant for a GPU; on a CPU it wants as
many cores as runs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.adapter import resolve_adapter
from deltamem.backbones.load import load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.training.ordinary import OrdinaryTalk
from deltamem.training.places.bank import Bank, joined, part_of, with_words
from deltamem.training.places.start import begin_keys_anew, start_from
from deltamem.training.places.vocabulary import tell_vocabulary
from deltamem.training.places.whole import whole_bank
from deltamem.training.presets import PRESETS
from deltamem.training.recipe import Recipe
from deltamem.training.run import KEYS_OF, extended
from deltamem.training.trainer import Trainer

_GIVEN = (int, float, bool)
_BEGINNING = 20
"""Seconds it takes a run to begin, about."""


@dataclass(frozen=True)
class Run:
    """One of those that are trained.

    Attributes:
        name: its directory's.
        config: shape of the state.
        start: adapter it begins with; None for the closed-form start.
        recipe: of its steps.
    """

    name: str
    config: DeltaMemConfig
    start: Path | None
    recipe: Recipe


def parse_run(text: str, common: Recipe, config: DeltaMemConfig) -> Run:
    """A run from ``NAME:option=value,...``."""
    name, _, rest = text.partition(":")
    given = dict(option.split("=", 1) for option in rest.split(",") if option)
    start = given.pop("from", None)
    if start is not None:
        given.setdefault("easy_steps", "0")
    rank, heads = int(given.pop("rank", config.rank)), int(given.pop("heads", 1))
    kinds: dict[str, Any] = {f.name: type(getattr(common, f.name)) for f in fields(Recipe)}
    kinds = {
        name: (lambda text: text == "1") if kind is bool else kind for name, kind in kinds.items() if kind in _GIVEN
    }
    if unknown := sorted(given.keys() - kinds.keys()):
        raise SystemExit(f"there is no option {', '.join(unknown)} in --run {text}")
    options: dict[str, Any] = {key: kinds[key](value) for key, value in given.items()}
    shape = replace(config, rank=rank, num_state_heads=heads, alpha=config.alpha * rank / config.rank)
    return Run(name, shape, None if start is None else resolve_adapter(start), replace(common, **options))


def log(text: str) -> None:
    """A line with the time, at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def train(run: Run, bank: Bank, few: Bank | None, options: argparse.Namespace) -> None:
    """What one process does; a closed-form start is from a few of the bank's facts."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    torch.manual_seed(run.recipe.seed)
    directory = options.output / run.name
    directory.mkdir(parents=True, exist_ok=True)
    if run.start is None and few is not None:
        on_cpu = load_backbone(options.backbone, "cpu", quantize="none", dtype=torch.float32)
        fresh = DeltaMemory.attach(on_cpu.model, run.config)
        start_from(fresh, few, run.recipe.seed)
        fresh.save_pretrained(directory)
        fresh.detach()
    # A bank is of one sort of keys, whatever a run begins with.
    given = {name: getattr(run.config, name) for name in KEYS_OF}
    recipe = run.recipe
    given |= {"base_queries": recipe.new_keys, "learned_erase": recipe.fit_erase, "joint_gate": recipe.joint_steps > 0}
    keys = DeltaMemConfig(keys="pair", base_state=True, **given)

    def attach(model: Any) -> DeltaMemory:
        return extended(DeltaMemory.from_pretrained(model, run.start or directory), keys)

    passes, people = prepared(options, attach)
    fit = begin_keys_anew if run.recipe.new_keys else None
    trainer = Trainer(passes, run.recipe, directory, people, fit=fit, workers=options.workers, bank=bank)
    log(f"{run.name}: begins")
    steps: list[Any] = []
    for report in trainer.run():
        steps.append(report)
        if report.step % 250 == 0:
            mean = sum(r.accuracy for r in steps[-250:]) / 250
            log(f"{run.name}: step {report.step}, {report.seconds:.3f} s, right {mean:.3f}, loss {report.loss:.3f}")
        if run.recipe.over(report.step, trainer.seconds):
            shutil.copytree(directory, options.output / f"{run.name}-steps", dirs_exist_ok=True)
    log(f"{run.name}: {trainer.step} steps in {trainer.seconds:.0f} s, done")


def build(part: int, config: DeltaMemConfig, common: Recipe, options: argparse.Namespace, pipe: Connection) -> None:
    """What a process does that builds a part of the bank; it lends it until it is told that it was copied."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    passes, people = prepared(options, lambda model: DeltaMemory.attach(model, config))
    said = ""

    def report(what: str, _share: float) -> None:
        nonlocal said
        if what != said:
            said = what
            log(f"part {part}: {what}")

    ordinary = OrdinaryTalk(passes, people, common.reply_tokens, common.seed, options.output, report)
    recipe = replace(common, bank=options.bank // options.builders, seed=common.seed + part, vocabulary=0)
    makers = max(1, options.makers // options.builders)
    # Ordinary talk is the same in all parts, so it is read once.
    bank = whole_bank(passes, people, None if part else ordinary, recipe, options.output, report, makers)
    pipe.send(bank.on(torch.device(options.device)))
    log(f"part {part}: {len(bank.facts)} facts")
    pipe.recv()


def prepared(options: argparse.Namespace, attach: Callable[[Any], DeltaMemory]) -> tuple[Passes, SyntheticPeople]:
    """The backbone with the memory that `attach` gives it, and the generator."""
    backbone = load_backbone(options.backbone, options.device, quantize="none", dtype=torch.float32)
    passes = Passes(attach(backbone.model), ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    return passes, SyntheticPeople(backbone.tokenizer)


def whole(config: DeltaMemConfig, common: Recipe, options: argparse.Namespace) -> Bank:
    """The bank, on the device."""
    context = torch.multiprocessing.get_context("spawn")
    builders = []
    for part in range(options.builders):
        here, there = context.Pipe()
        process = context.Process(target=build, args=(part, config, common, options, there))
        process.start()
        there.close()
        builders.append((process, here))
    torch.manual_seed(common.seed)
    passes, people = prepared(options, lambda model: DeltaMemory.attach(model, config))
    words = tell_vocabulary(passes, people, common.vocabulary, common.seed) if common.vocabulary else None
    passes.memory.detach()
    bank = joined([pipe.recv() for _, pipe in builders])
    for process, pipe in builders:
        pipe.send("copied")
        process.join()
    bank = bank if words is None else with_words(bank, words)
    return bank.on(torch.device(options.device))


def main() -> None:
    """Build the bank, and let every run train on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--run", action="append", required=True, help="NAME:option=value,...; may be repeated")
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=6.0, help="of every run's steps")
    parser.add_argument("--within", type=float, help="minutes for all but --read-steps, in place of --minutes")
    parser.add_argument("--steps", type=int, default=100_000, help="of every run at most")
    parser.add_argument("--read-steps", type=int, default=200)
    parser.add_argument("--bank", type=int, default=24_000, help="episodes")
    parser.add_argument("--start-facts", type=int, default=4000, help="facts for the closed-form start")
    parser.add_argument("--own-share", type=float, help="of keys, of the bank and of all runs")
    parser.add_argument("--fading", type=float, help="of keys, of the bank and of all runs")
    parser.add_argument("--vocabulary", type=int, default=2)
    parser.add_argument("--impersonal", type=int, default=5)
    parser.add_argument("--made-up", type=int, default=200)
    parser.add_argument("--questions", type=int, default=1024, help="in a step")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw, for each run")
    parser.add_argument("--makers", type=int, default=12, help="processes that make episodes, for all builders")
    parser.add_argument("--builders", type=int, default=3, help="processes that read what was made")
    options = parser.parse_args()
    for text in options.run:
        parse_run(text, PRESETS["places"].recipe, PRESETS["places"].config)  # what is wrong with one is said at once
    preset = PRESETS["places"]
    common = replace(
        preset.recipe,
        steps=options.steps,
        cached_steps=options.steps,
        minutes=options.minutes,
        read_steps=options.read_steps,
        bank=options.bank,
        vocabulary=options.vocabulary,
        impersonal=options.impersonal,
        made_up=options.made_up,
        cached_questions=options.questions,
        cached_facts=32,
        warmup=200,
        ordinary=0,
        eval_every=10**9,
        save_every=10**9,
    )
    given = {name: value for name in KEYS_OF if (value := getattr(options, name)) is not None}
    config = replace(preset.config, target_layers=tuple(range(4, 30)), **given)
    began = time.monotonic()
    torch.set_float32_matmul_precision("high")
    options.output.mkdir(parents=True, exist_ok=True)
    bank = whole(config, common, options)
    log(f"{len(bank.facts)} facts, {bank.places.shape[1]} places, {bank.openings.shape[1]} openings")
    log(f"{bank.bytes / 2**30:.1f} GiB on {options.device}")
    if options.within is not None:
        left = options.within - (time.monotonic() - began + _BEGINNING) / 60
        common = replace(common, minutes=max(left, 0.1))
    runs = [parse_run(text, common, config) for text in options.run]
    context = torch.multiprocessing.get_context("spawn")
    some = random.Random(0).sample(list(bank.facts), min(options.start_facts, len(bank.facts)))
    few = part_of(bank, some) if any(run.start is None for run in runs) else None
    processes = [context.Process(target=train, args=(run, bank, few, options)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [run.name for run, process in zip(runs, processes, strict=True) if process.exitcode]
    log(f"failed: {', '.join(failed)}" if failed else "all done")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
