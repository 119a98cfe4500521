"""The commands that train an adapter and measure one: names, options and late imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.options import (
    AdapterOption,
    BackboneOption,
    ContextOption,
    DeviceOption,
    EvalTask,
    JsonOption,
    QuantizeChoice,
    QuantizeOption,
    RepliesChoice,
)


def train_adapter(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the adapter and its checkpoints.")],
    backbone: BackboneOption = None,
    preset: Annotated[
        str,
        typer.Option(help="places, deltamem, cached, continued or published: where what is not given here comes from."),
    ] = "places",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="synthetic, a .jsonl of chats or a SQuAD .json, each with a weight if you like: synthetic:0.7. "
            "May be repeated.",
        ),
    ] = None,
    start: Annotated[Path | None, typer.Option("--from", help="Begin with this adapter.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output.")] = False,
    steps: Annotated[int | None, typer.Option(min=0, help="Optimizer steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="End after so many minutes of steps, if not after --steps.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that make and draw data beside this one (places). Default: 6 with a GPU."),
    ] = None,
    cached_steps: Annotated[
        int | None, typer.Option(min=0, help="So many of them, the first, on hidden states worked out once.")
    ] = None,
    bank: Annotated[int | None, typer.Option(min=8, help="Turns (places: episodes) that those draw from.")] = None,
    stock: Annotated[int | None, typer.Option(min=0, help="Episodes besides, told and not asked (places).")] = None,
    key_steps: Annotated[int | None, typer.Option(min=0, help="Steps of keys alone before those (places).")] = None,
    say_steps: Annotated[int | None, typer.Option(min=0, help="Steps of values alone before those (places).")] = None,
    gate_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of gates alone before those, with --from (places).")
    ] = None,
    fit_erase: Annotated[
        bool, typer.Option("--fit-erase", help="Fit how much a write takes out of what was told, with --from (places).")
    ] = False,
    read_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of reading alone, after all others (places).")
    ] = None,
    joint_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps of the gate that all layers share, before those of reading (places)."),
    ] = None,
    number_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps in which numbers are learnt besides, after all others, with --from (places)."),
    ] = None,
    chat_steps: Annotated[
        int | None,
        typer.Option(
            min=0, help="Steps on what is asked in the chat in which it was told, after those, with --from (places)."
        ),
    ] = None,
    people_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps on what people close to one do and are, after those, with --from (places)."),
    ] = None,
    begin_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps on the words that replies begin with, last of all, with --from (places)."),
    ] = None,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Begin --from's keys and queries anew, fitted; keep the rest (places).")
    ] = False,
    keep_writing: Annotated[
        bool,
        typer.Option("--keep-writing", help="Train reading alone: --from's profiles stay readable (places)."),
    ] = False,
    vocabulary: Annotated[
        int | None, typer.Option(min=0, help="Times every word piece is told as a value (places).")
    ] = None,
    easy_steps: Annotated[
        int | None, typer.Option(min=0, help="Of the first steps, so many tell little and ask little else (places).")
    ] = None,
    made_up: Annotated[
        int | None, typer.Option(min=0, help="Conversations the backbone makes up, to be left alone (places).")
    ] = None,
    impersonal: Annotated[
        int | None, typer.Option(min=0, help="Questions about a noun that are nobody's own, to be left alone (places).")
    ] = None,
    relatives: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of episodes that tell what people close to one do and are (places)."),
    ] = None,
    cached_questions: Annotated[int | None, typer.Option(min=8, help="Questions in one of those steps.")] = None,
    cached_facts: Annotated[int | None, typer.Option(min=1, max=32, help="Most facts in a history of those.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Histories per step, over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Cut a step into this many parts.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of AdamW.")] = None,
    fitted_rate: Annotated[float | None, typer.Option(help="That of keys and queries, relative.")] = None,
    warmup: Annotated[int | None, typer.Option(min=1, help="Steps of linear warm-up.")] = None,
    decay: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the steps with cosine decay.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm.")] = None,
    window: Annotated[
        int | None, typer.Option(min=16, help="Longest history written in one window, in tokens.")
    ] = None,
    truncate: Annotated[int | None, typer.Option(min=1, help="Windows the gradient goes back through.")] = None,
    start_weight: Annotated[float | None, typer.Option(help="Of an answer's first token beside the value's.")] = None,
    rest_weight: Annotated[float | None, typer.Option(help="Of an answer's other tokens.")] = None,
    addressing_weight: Annotated[float | None, typer.Option(help="Of questions finding what was told.")] = None,
    spread: Annotated[float | None, typer.Option(help="Within that, of keys lying apart.")] = None,
    close_weight: Annotated[
        float | None, typer.Option(min=0, help="Of telling a brother from a sister that was told (places).")
    ] = None,
    ordinary: Annotated[int | None, typer.Option(min=0, help="Ordinary questions per step.")] = None,
    ordinary_weight: Annotated[float | None, typer.Option(help="Of leaving them alone.")] = None,
    distill_weight: Annotated[float | None, typer.Option(help="Of the backbone with the history in context.")] = None,
    contrast_weight: Annotated[float | None, typer.Option(help="Of the right state against others.")] = None,
    sparsity_weight: Annotated[float | None, typer.Option(help="Of few writes.")] = None,
    gate_target: Annotated[float | None, typer.Option(help="Mean write gate that --sparsity-weight aims at.")] = None,
    silence_weight: Annotated[float | None, typer.Option(help="Of shut read gates in ordinary talk.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Side of a state matrix; with --from, a larger one.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="State heads per layer.")] = None,
    write: Annotated[str | None, typer.Option(help="token (TSW, MSW), message_mean or sentence_mean (SSW).")] = None,
    update: Annotated[str | None, typer.Option(help="standard, lambda_outside or no_lambda.")] = None,
    correct: Annotated[str | None, typer.Option(help="Which of q, k, v, o are corrected, e.g. qo.")] = None,
    row_gates: Annotated[
        bool | None, typer.Option("--row-gates/--head-gates", help="A write gate a row of the state, or one a head.")
    ] = None,
    read_gate: Annotated[
        bool | None, typer.Option("--read-gate/--no-read-gate", help="Let tokens that ask for nothing read nothing.")
    ] = None,
    read_gate_floor: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Read gates no wider open than this are shut.")
    ] = None,
    write_gate_floor: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Write gates no wider open than this are shut.")
    ] = None,
    reads: Annotated[str | None, typer.Option(help="all: every token reads; reply: those of replies.")] = None,
    reply_floor: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Replies to what opens write gates no further are not written; 1: none is."),
    ] = None,
    corrections: Annotated[
        str | None, typer.Option(help="own: each layer's goes to its own attention; last: all go to the last layer's.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="own: a key is made of its token; pair: of that and the token before it.")
    ] = None,
    own_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="What its own token counts for in a key, within a value or with --fading everywhere."
        ),
    ] = None,
    fading: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="What a token passes on to the next key of what it was lent.")
    ] = None,
    base_state: Annotated[
        bool | None, typer.Option("--base-state", help="Read a learned matrix together with the state.")
    ] = None,
    base_queries: Annotated[
        bool | None, typer.Option("--base-queries", help="Ask that matrix with queries of its own.")
    ] = None,
    learned_erase: Annotated[
        bool | None, typer.Option("--learned-erase", help="Learn how much of what a key finds a write takes out.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers, e.g. 0,5,10-20. Default: all.")] = None,
    warm_start: Annotated[
        bool | None,
        typer.Option("--warm-start/--no-warm-start", help="Fit keys, gates and values on frozen hidden states first."),
    ] = None,
    mark: Annotated[float | None, typer.Option(help="Accuracy that ends a stage of the curriculum.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps between held-out evaluations.")] = None,
    eval_questions: Annotated[int | None, typer.Option(min=1, help="Questions per figure in one of those.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="Stop after this many evaluations without a better one.")
    ] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard as well.")] = False,
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the backbone: auto, float32 or bfloat16.")] = "auto",
    quantize: QuantizeOption = QuantizeChoice.none,
) -> None:
    """Train an adapter for a backbone. It is what writes and reads the memory."""
    from deltamem_cli.train_adapter import TrainOptions, layer_numbers, run_train

    config = {
        "rank": rank,
        "num_state_heads": heads,
        "memory_write_granularity": write,
        "state_update_mode": update,
        "delta_heads": None if correct is None else tuple(correct),
        "rankwise_gates": row_gates,
        "read_gate": read_gate,
        "read_gate_floor": read_gate_floor,
        "write_gate_floor": write_gate_floor,
        "reads": reads,
        "reply_floor": reply_floor,
        "corrections": corrections,
        "keys": keys,
        "own_share": own_share,
        "fading": fading,
        "base_state": base_state,
        "base_queries": base_queries,
        "learned_erase": learned_erase,
        "target_layers": None if layers is None else layer_numbers(layers),
    }
    recipe = {
        "steps": steps,
        "minutes": minutes,
        "cached_steps": cached_steps,
        "bank": bank,
        "stock": stock,
        "key_steps": key_steps,
        "say_steps": say_steps,
        "gate_steps": gate_steps,
        "fit_erase": fit_erase or None,
        "read_steps": read_steps,
        "joint_steps": joint_steps,
        "number_steps": number_steps,
        "chat_steps": chat_steps,
        "people_steps": people_steps,
        "begin_steps": begin_steps,
        "new_keys": new_keys or None,
        "keep_writing": keep_writing or None,
        "vocabulary": vocabulary,
        "easy_steps": easy_steps,
        "made_up": made_up,
        "impersonal": impersonal,
        "relatives": relatives,
        "cached_questions": cached_questions,
        "cached_facts": cached_facts,
        "batch": batch,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "fitted_rate": fitted_rate,
        "warmup": warmup,
        "decay": decay,
        "clip": clip,
        "window": window,
        "truncate": truncate,
        "start_weight": start_weight,
        "rest_weight": rest_weight,
        "addressing_weight": addressing_weight,
        "spread": spread,
        "close_weight": close_weight,
        "ordinary": ordinary,
        "ordinary_weight": ordinary_weight,
        "distill_weight": distill_weight,
        "contrast_weight": contrast_weight,
        "sparsity_weight": sparsity_weight,
        "silence_weight": silence_weight,
        "gate_target": gate_target,
        "mark": mark,
        "seed": seed,
        "eval_every": eval_every,
        "eval_questions": eval_questions,
        "patience": patience,
    }
    run_train(
        TrainOptions(
            output=output,
            backbone=backbone,
            preset=preset,
            data=data or [],
            start=start,
            resume=resume,
            workers=workers,
            device=device,
            dtype=dtype,
            quantize=quantize.value,
            checkpointing=checkpointing,
            tensorboard=tensorboard,
            warm_start=warm_start,
            config={k: v for k, v in config.items() if v is not None},
            recipe={k: v for k, v in recipe.items() if v is not None},
        )
    )


def evaluate(
    task: Annotated[
        EvalTask,
        typer.Argument(
            help="recall: made-up facts. ordinary: are ordinary questions left alone? perplexity: is text? "
            "The others are read from files.",
            show_choices=True,
        ),
    ],
    path: Annotated[Path | None, typer.Argument(help="The task's file, where it has one.")] = None,
    backbone: BackboneOption = None,
    adapter: AdapterOption = None,
    conditions: Annotated[
        str,
        typer.Option(
            help="all, or some of frozen, memory, context, retrieval, memory+context, memory+retrieval, shuffled, "
            "with commas between them."
        ),
    ] = "all",
    questions: Annotated[int, typer.Option(min=1, help="recall: questions per figure, about.")] = 48,
    facts: Annotated[str, typer.Option(help="recall: numbers of facts told.")] = "1,2,4,8,16,32",
    distances: Annotated[str, typer.Option(help="recall: turns of small talk before the question.")] = "0,10,50,200",
    parts: Annotated[
        str,
        typer.Option(
            help="recall: all, or some of facts, new values, likely values, unusual words, distance, held out, kind, "
            "statements, or one kind."
        ),
    ] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions (windows of text).")] = None,
    context: ContextOption = None,
    retrieve: Annotated[int, typer.Option(min=1, help="Most past turns that retrieval puts into the prompt.")] = 5,
    replies: Annotated[
        RepliesChoice,
        typer.Option(help="In the histories: as the task has them, or the model's own, as in a chat."),
    ] = RepliesChoice.scripted,
    batch: Annotated[int, typer.Option(min=1, help="Questions run together.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the made-up people.")] = 0,
    predictions: Annotated[
        Path | None, typer.Option(help="Keep every reply in this file (JSON lines); run again to go on with it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file, e.g. recall.png.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the backbone: auto, float32 or bfloat16.")] = "auto",
    quantize: QuantizeOption = QuantizeChoice.auto,
) -> None:
    """Measure what memory recalls, beside the frozen backbone, the history in the prompt, and retrieval."""
    from deltamem_cli.evaluate import EvalChoices, run_eval

    run_eval(
        EvalChoices(
            task=task.value,
            path=path,
            backbone=backbone,
            adapter=adapter,
            conditions=conditions,
            questions=questions,
            facts=facts,
            distances=distances,
            parts=parts,
            limit=limit,
            context=context,
            retrieve=retrieve,
            replies=replies.value,
            batch=batch,
            seed=seed,
            predictions=predictions,
            plot=plot,
            json=as_json,
            device=device,
            dtype=dtype,
            quantize=quantize.value,
        )
    )


def bench(
    backbone: BackboneOption = None,
    adapter: AdapterOption = None,
    lengths: Annotated[str, typer.Option(help="Prompts, in tokens.")] = "64,256,1024",
    decode: Annotated[int, typer.Option(min=1, help="Tokens made after each prompt.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats, frozen and with memory turn about.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Draw the times into this file.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the backbone: auto, float32 or bfloat16.")] = "auto",
    quantize: QuantizeOption = QuantizeChoice.auto,
) -> None:
    """Measure what memory costs here: time and peak memory, frozen and with it."""
    from deltamem_cli.bench import run_bench

    run_bench(backbone, adapter, lengths, decode, repeats, plot, as_json, device, dtype, quantize.value)
