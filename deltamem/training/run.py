"""Setting a training run up: memory, starting point, data; and the card that says how an adapter was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltamem import __version__
from deltamem.backbones.load import Backbone
from deltamem.chat_format import ChatFormat
from deltamem.config import DeltaMemConfig
from deltamem.episodes.episode import Episode
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.paths import write_private
from deltamem.training.checkpoints import CHECKPOINT_FILE
from deltamem.training.recipe import Recipe
from deltamem.training.trainer import Trainer
from deltamem.training.warm_start import copy_directions, fit_addressing

CARD_FILE = "README.md"


def prepare(
    backbone: Backbone,
    config: DeltaMemConfig,
    recipe: Recipe,
    directory: Path,
    own: Sequence[Episode] = (),
    own_share: float = 0.5,
    warm_start: bool = True,
    resume: bool = False,
    report: Callable[[str, float], None] | None = None,
) -> Trainer:
    """A trainer that is ready to run.

    Args:
        report: called with what is being done and the share done, during the warm start.

    Raises:
        DataError: the directory holds a run already, or none to resume; or an episode is too long.
        AttachError: the backbone lacks what the configuration asks for.
    """
    checkpoint = directory / CHECKPOINT_FILE
    if checkpoint.exists() and not resume:
        raise DataError(f"{directory} holds a run already; go on with --resume, or choose another directory")
    memory = DeltaMemory.attach(backbone.model, config)
    form = ChatFormat.of(backbone.tokenizer, stops=backbone.stops)
    _check_lengths(own, form, backbone)
    passes = Passes(memory, form)
    people = SyntheticPeople(backbone.tokenizer)
    trainer = Trainer(passes, recipe, directory, people, own, own_share)
    if resume:
        trainer.resume()
    elif warm_start:
        copy_directions(memory)
        fit_addressing(memory, passes, people, seed=recipe.seed, report=report)
    return trainer


def _check_lengths(own: Sequence[Episode], form: ChatFormat, backbone: Backbone) -> None:
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    for number, episode in enumerate(own, 1):
        tokens = sum(len(form.text(t.user)) + len(form.text(t.reply)) + 16 for t in episode.history)
        if limit and tokens > limit:
            raise DataError(f"episode {number} of the data has {tokens} tokens of history; the model takes {limit}")


def write_card(directory: Path, backbone: Backbone, trainer: Trainer, command: str, results: dict[str, Any]) -> None:
    """Say in the adapter's folder how it was made and what it measured."""
    memory, recipe = trainer.passes.memory, trainer.recipe
    parameters = sum(p.numel() for p in memory.parameters())
    lines = [
        f"# {directory.name}",
        "",
        f"A δ-mem adapter (arXiv 2605.12357) for {backbone.name}, made by deltamem {__version__}.",
        "",
        f"    {command}",
        "",
        f"- backbone fingerprint {backbone.fingerprint}, {parameters:,} parameters",
        f"- data: the built-in generator (`deltamem/episodes/data`), {len(trainer.own)} episodes of one's own",
        f"- {trainer.step} steps in {trainer.seconds / 60:.0f} minutes, seed {recipe.seed}, "
        f"last curriculum stage {trainer.curriculum.stage}",
        f"- recipe: `{json.dumps(recipe.to_dict())}`",
        "",
        "Recall on held-out values and phrasings, from memory alone, greedy, free-running:",
        "",
        "| facts told | questions | exact | value named | picking at random | frozen: value named |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for facts, score in results.items():
        lines.append(
            f"| {facts} | {score['asked']} | {score['exact']:.1%} | {score['named']:.1%} | {score['chance']:.1%} "
            f"| {score['frozen_named']:.1%} |"
        )
    write_private(directory / CARD_FILE, ("\n".join(lines) + "\n").encode())
