"""Setting a training run up: memory, starting point, data; and the card that says how an adapter was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from deltamem import __version__
from deltamem.backbones.load import Backbone
from deltamem.chat_format import ChatFormat
from deltamem.config import DeltaMemConfig
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.errors import DataError
from deltamem.memory import DeltaMemory
from deltamem.paths import write_private
from deltamem.readers import later_readers
from deltamem.training.checkpoints import CHECKPOINT_FILE
from deltamem.training.curriculum import CHATS, STAGES, WaitingCurriculum
from deltamem.training.data import parse_mix
from deltamem.training.fitting import fit_memory
from deltamem.training.more_heads import put_heads_back
from deltamem.training.places.later import begin_as
from deltamem.training.places.longer import lengthen
from deltamem.training.places.start import begin_keys_anew, start_from
from deltamem.training.presets import Preset
from deltamem.training.team import Team
from deltamem.training.trainer import Fit, Trainer
from deltamem.training.warm_start import delta_layers

CARD_FILE = "README.md"
EXTENSIONS = (
    "base_state",
    "base_queries",
    "learned_erase",
    "joint_gate",
    "read_gate_floor",
    "write_gate_floor",
    "reply_floor",
)
"""Options that an adapter can be given which was trained without them; what keys are made of, state heads and a larger
rank are others."""
KEYS_OF = ("own_share", "fading")
"""What keys in pairs are made of."""
_CHOICES, _CHOICE_RANK = 21, 128
"""Entries that each layer holds of a table of how replies go on, and numbers that one is looked up by."""


def prepare(
    backbone: Backbone,
    preset: Preset,
    directory: Path,
    data: Sequence[str] = (),
    resume: bool = False,
    start: Path | None = None,
    checkpointing: bool = False,
    tensorboard: bool = False,
    team: Team | None = None,
    report: Callable[[str, float], None] | None = None,
    workers: int = 0,
) -> Trainer:
    """A trainer that is ready to run.

    Args:
        backbone: frozen.
        preset: configuration and recipe.
        directory: of the run.
        data: sources with weights (see `parse_mix`).
        resume: go on with the checkpoint in `directory`.
        start: begin with this adapter, whose configuration is kept but for what `EXTENSIONS` names, for more state
            heads and for a larger rank, and with a new optimizer.
        checkpointing: work activations out again for the gradient, to save memory.
        tensorboard: log for TensorBoard as well.
        team: the processes that train together.
        report: called with what is being done and the share done, during the warm start.
        workers: processes that make episodes and draw beside this one; 0 for none.

    Raises:
        DataError: the directory holds a run already, or none to resume; or data can't be used.
        AttachError: the backbone lacks what the configuration asks for.
    """
    checkpoint = directory / CHECKPOINT_FILE
    if checkpoint.exists() and not resume:
        raise DataError(f"{directory} holds a run already; go on with --resume, or choose another directory")
    form = ChatFormat.of(backbone.tokenizer, stops=backbone.stops)
    people = SyntheticPeople(backbone.tokenizer)
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    mix = parse_mix(data, people, form, limit)
    model = backbone.model
    before: DeltaMemory | None = None
    if resume and checkpoint.exists():
        memory = DeltaMemory.from_pretrained(model, directory)  # its configuration is the run's, wherever it came from
    elif start is not None:
        before = DeltaMemory.from_pretrained(model, start)
        memory = extended(before, preset.config, readers=preset.recipe.readers, plainly=preset.recipe.begin_steps > 0)
    else:
        memory = DeltaMemory.attach(model, preset.config)
    if preset.recipe.cached_steps and memory.config.writes_segments:
        raise DataError("cached steps write token by token; use --cached-steps 0 with --write message_mean")
    recipe = preset.recipe
    if (recipe.chat_steps or recipe.people_steps) and not memory.config.second_reader:
        raise DataError(
            "--chat-steps and --people-steps are for an adapter with a gate that all layers share, and without "
            "--base-queries; give --joint-steps as well"
        )
    alone = recipe.steps_at_the_end + recipe.gate_steps + recipe.fit_erase
    on_places = memory.config.corrections == "last" and recipe.cached_steps + alone > 0
    if memory.config.keys == "pair" and not on_places:
        raise DataError("keys in pairs are learnt by steps on places alone; use --preset places")
    if recipe.new_keys and not on_places:
        raise DataError("--new-keys is for steps on places; use --preset places")
    if not recipe.steps and not on_places:
        raise DataError(
            "--read-steps, --joint-steps, --number-steps, --chat-steps, --people-steps, --begin-steps, --gate-steps "
            "and --fit-erase are for corrections to the last layer; give --steps as well"
        )
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers checkpoints in training mode only; a backbone without dropout is the same in it
    passes = Passes(memory, form)
    learnt = start is not None or preset.recipe.cached_steps > 0
    stages = (CHATS if learnt else STAGES) if preset.curriculum else CHATS[-1:]
    curriculum = WaitingCurriculum(stages=stages, mark=preset.recipe.mark)
    fit: Fit | None = None
    if on_places and preset.warm_start and start is None:
        fit = start_from
    elif before is not None and memory.config.rank > before.config.rank:
        if not on_places:
            raise DataError("--from with a larger --rank is for steps on places; use --preset places")
        fit = partial(lengthen, before)
    elif on_places and start is not None and preset.recipe.new_keys:
        fit = begin_keys_anew
    trainer = Trainer(
        passes, preset.recipe, directory, people, mix, team, curriculum, tensorboard, fit, report, workers
    )
    if resume:
        trainer.resume()
    elif before is None or _more_heads(memory, before):
        if preset.warm_start and not on_places:
            fit_memory(memory, passes, people, seed=preset.recipe.seed, report=report)
        if before is not None:
            put_heads_back(memory, before)
    return trainer


def extended(memory: DeltaMemory, wanted: DeltaMemConfig, readers: int = 1, plainly: bool = False) -> DeltaMemory:
    """The same memory with those `EXTENSIONS`, and keys made of what is wanted; a base state is empty at first.

    With more heads or a larger rank than there were, its weights are fresh: `put_heads_back` and `lengthen` are for
    when they are fitted. Corrections weigh what they did with any rank. Where so many `readers` are wanted
    and the adapter has a joint gate, those that are new ask what the one before them does. What is read `plainly`, and
    what is chosen of a table beside it, is nothing at first.

    Raises:
        DataError: the heads that are wanted are not those that there are and as many beside each, the rank is
            smaller, or can't be larger, or a joint gate is wanted where every layer has corrections of its own.
    """
    given = {name: getattr(wanted, name) or getattr(memory.config, name) for name in EXTENSIONS}
    if wanted.joint_gate and memory.config.corrections != "last":
        raise DataError("--joint-steps need an adapter whose corrections go to the last layer, and this one's do not")
    given["plain_read"] = plainly or memory.config.plain_read
    given |= {"choices": memory.config.choices, "choice_rank": memory.config.choice_rank}
    if plainly and not memory.config.choices:
        given |= {"choices": _CHOICES, "choice_rank": _CHOICE_RANK}
    if given["plain_read"] and not given["joint_gate"]:
        raise DataError(
            "--begin-steps are for an adapter with a gate that all layers share; give --joint-steps as well"
        )
    given["own_share"] = wanted.own_share if wanted.own_share != 1 else memory.config.own_share
    given["fading"] = wanted.fading or memory.config.fading
    heads, had = wanted.num_state_heads, memory.config.num_state_heads
    if heads > 1:  # 1 is what nobody asked for
        given["num_state_heads"] = heads
        if heads % had or (heads > had and memory.config.writes_segments):
            raise DataError(f"--heads {heads} can't go beside the {had} of the adapter; take a multiple of them")
    rank, short = wanted.rank, memory.config.rank
    if rank not in (DeltaMemConfig().rank, short):  # the first is what nobody asked for
        if rank < short or heads > had or memory.config.rankwise_gates:
            raise DataError(
                f"--rank {rank} can't take the place of the adapter's {short}; "
                "a larger one can, with as many heads and a gate for each"
            )
        given |= {"rank": rank, "alpha": memory.config.alpha * rank / short}
    if given["joint_gate"] and not given["base_queries"]:
        given["second_reader"] = readers > 1 or memory.config.second_reader
        given["third_reader"] = readers > 2 or memory.config.third_reader
    config = replace(memory.config, **given)
    larger = config.num_state_heads > had or config.rank > short
    if larger and config.base_queries and not memory.config.base_queries:
        raise DataError(
            "--base-queries and --new-keys can't come with more heads or a larger --rank; do one after the other"
        )
    if larger and (config.second_reader or config.plain_read):
        raise DataError(
            "a second reader (--number-steps, --chat-steps, --people-steps) and what is read plainly (--begin-steps) "
            "can't come with more heads or a larger --rank, nor be there before; take those first"
        )
    if config == memory.config:
        return memory
    memory.detach()
    wider = DeltaMemory.attach(memory.model, config)
    if not _more_heads(wider, memory) and wider.config.rank == memory.config.rank:
        wider.adapter.load_state_dict(memory.adapter.state_dict(), strict=False)
        if config.base_queries and not memory.config.base_queries:
            for layer in delta_layers(wider):
                layer.memory_base_proj.data.copy_(layer.memory_q_proj)
        there, later = len(later_readers(memory.config)), later_readers(config)
        for before, reader in list(zip((None, *later), later, strict=False))[there:]:
            begin_as(delta_layers(wider), reader, before)
    return wider


def _more_heads(memory: DeltaMemory, before: DeltaMemory) -> bool:
    return memory.config.num_state_heads > before.config.num_state_heads


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
        f"- data: {', '.join(trainer.mix.names)} (synthetic is the generator in `deltamem/episodes`)",
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
