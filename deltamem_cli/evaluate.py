"""`deltamem eval`: questions under several conditions, with a table, predictions on disk, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltamem.errors import DataError, DeltaMemError
from deltamem_cli.huge_pages import use_huge_pages
from deltamem_cli.terminal import bars, err, notice, table, write_json

FILE_TASKS = ("locomo", "hotpotqa", "squad", "memoryagentbench", "jsonl")


@dataclass(frozen=True)
class EvalChoices:
    """The options of `deltamem eval`, as in its help."""

    task: str
    path: Path | None
    backbone: str | None
    adapter: str | None
    conditions: str
    questions: int
    facts: str
    distances: str
    parts: str
    limit: int | None
    context: int | None
    retrieve: int
    replies: str
    batch: int
    seed: int
    predictions: Path | None
    plot: Path | None
    json: bool
    device: str
    dtype: str
    quantize: str


def run_eval(choices: EvalChoices) -> None:
    """Run a task and show the figures."""
    use_huge_pages()
    from deltamem.evaluation.conditions import CONDITIONS

    takes_path = choices.task in (*FILE_TASKS, "perplexity")
    if takes_path and choices.path is None:
        raise DataError(f"deltamem eval {choices.task} takes the path of a file")
    if not takes_path and choices.path is not None:
        raise DataError(f"deltamem eval {choices.task} takes no file")
    if choices.path is not None and not choices.path.exists():
        raise DataError(f"there is no {choices.path}")
    conditions = CONDITIONS if choices.conditions == "all" else tuple(choices.conditions.split(","))
    for name in conditions:
        if name not in CONDITIONS:
            raise DataError(f"no condition is called {name!r}; there are {', '.join(CONDITIONS)}")
    if choices.plot is not None:
        from deltamem.pictures import require_matplotlib

        require_matplotlib()
    passes, settings, context = _open(choices)
    if choices.task == "perplexity":
        _perplexity(choices, passes, settings)
    elif choices.task == "ordinary":
        _ordinary(choices, passes, settings)
    else:
        _questions(choices, passes, settings, conditions, context)


def _open(choices: EvalChoices) -> tuple[Any, dict[str, Any], int]:

    from deltamem.adapter import adapter_fingerprint
    from deltamem.chat_format import ChatFormat
    from deltamem.episodes.passes import Passes
    from deltamem.memory import DeltaMemory
    from deltamem_cli.opening import context_for, dtype_of, open_backbone

    backbone = open_backbone(choices.backbone, choices.device, choices.quantize, dtype_of(choices.dtype))
    adapter = choices.adapter or backbone.adapter
    if adapter is None:
        raise DeltaMemError(f"{backbone.name} has no adapter to evaluate; name one with --adapter")
    memory = DeltaMemory.from_pretrained(backbone.model, adapter)
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    context = context_for(backbone, choices.context)
    settings = {
        "task": choices.task,
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "quantization": backbone.quantization,
        "dtype": str(backbone.model.dtype).removeprefix("torch."),
        "adapter": str(adapter),
        "adapter_fingerprint": adapter_fingerprint(memory.config, memory.adapter_tensors()),
        "context": context,
        "retrieve": choices.retrieve,
        "seed": choices.seed,
    }
    if choices.replies != "scripted":
        settings["replies"] = choices.replies
    return passes, settings, context


# Tasks that ask questions


def _questions(
    choices: EvalChoices, passes: Any, settings: dict[str, Any], conditions: Sequence[Any], context: int
) -> None:
    from deltamem.evaluation.predictions import PredictionsFile
    from deltamem.evaluation.run import EvalOptions, evaluate
    from deltamem.evaluation.summary import summarise

    task = _task(choices, passes.form.tokenizer).limited(choices.limit)
    settings |= {"items": len(task.items)}
    if choices.task == "recall":
        settings |= {"facts": choices.facts, "distances": choices.distances, "parts": choices.parts}
    file = PredictionsFile(choices.predictions, settings) if choices.predictions is not None else None
    lines = [line for line in file.lines if line["condition"] in conditions] if file is not None else []
    all_of_them = len(conditions) * len(task.items)
    if lines:
        notice(f"{len(lines)} of {all_of_them} answers are in {choices.predictions} already.")
    options = EvalOptions(conditions, context, choices.retrieve, choices.batch)
    with _progress() as report:
        if choices.replies == "own" and len(lines) < all_of_them:
            from deltamem.evaluation.own_replies import with_own_replies

            task = with_own_replies(task, passes, context, lambda n, of: report("replying", n, of))
        for prediction in evaluate(passes, task, options, file.done if file is not None else (), report):
            line = prediction.to_dict()
            lines.append(line)
            if file is not None:
                file.add(line)
    rows = summarise(lines, task.metrics, task.slices)
    if choices.json:
        write_json({"settings": settings, "rows": rows})
    else:
        _show(rows, task.metrics, conditions)
    if choices.plot is not None:
        from deltamem.evaluation.plot import plot_recall

        plot_recall(rows, task.metrics[0], choices.plot)
        notice(f"The plot is in {choices.plot}.")


def _task(choices: EvalChoices, tokenizer: Any) -> Any:
    if choices.task == "recall":
        from deltamem.evaluation.tasks.recall import KINDS, PARTS, recall_task

        parts = PARTS if choices.parts == "all" else tuple(choices.parts.split(","))
        known = (*PARTS, *KINDS)
        for part in parts:
            if part not in known:
                raise DataError(f"recall has no part {part!r}; there are {', '.join(known)}")
        facts, distances = (_numbers(o, n) for o, n in ((choices.facts, "--facts"), (choices.distances, "--distances")))
        return recall_task(tokenizer, choices.questions, facts, distances, parts, choices.seed)
    from deltamem.evaluation.tasks import hotpotqa, locomo, memoryagentbench, own, squad

    makers: dict[str, Callable[[Path], Any]] = {
        "locomo": locomo.locomo_task,
        "hotpotqa": hotpotqa.hotpotqa_task,
        "squad": squad.squad_task,
        "memoryagentbench": memoryagentbench.memoryagentbench_task,
        "jsonl": own.own_task,
    }
    assert choices.path is not None
    try:
        return makers[choices.task](choices.path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{choices.path} does not look like a {choices.task} file ({error!r})") from None


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise DataError(f"{option} takes numbers with commas between them, not {text!r}")
    return numbers


def _show(rows: Sequence[dict[str, Any]], metrics: Sequence[str], conditions: Sequence[str]) -> None:
    """A table for each breakdown: a line a slice and metric, a column a condition."""
    breakdowns: dict[tuple[str, ...], dict[tuple[Any, ...], dict[str, dict[str, Any]]]] = {}
    for row in rows:
        place = breakdowns.setdefault(tuple(row["slice"]), {})
        place.setdefault(tuple(row["slice"].values()), {})[row["condition"]] = row
    for labels, slices in breakdowns.items():
        lines = []
        for values, by_condition in slices.items():
            for metric in metrics:
                cells = [_cell(by_condition.get(c), metric) for c in conditions]
                n = max(row["n"] for row in by_condition.values())
                lines.append((*values, n, metric, *cells) if values else ("all", n, metric, *cells))
        columns = (*(labels or ("questions",)), "n", "metric", *conditions)
        table(columns, lines, right=("n", *conditions))
        err.print()
    over = [(r["condition"], r["over_frozen"]) for r in rows if not r["slice"] and "over_frozen" in r]
    for condition, found in over:
        notice(
            f"{condition} over frozen, {metrics[0]}: {found['mean']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"
        )


def _cell(row: dict[str, Any] | None, metric: str) -> str:
    if row is None:
        return ""
    found = row[metric]
    return f"{found['mean']:.1%} ({found['low']:.0%}-{found['high']:.0%})"


# Tasks that measure a distance from the frozen backbone


def _perplexity(choices: EvalChoices, passes: Any, settings: dict[str, Any]) -> None:
    from deltamem.evaluation.perplexity import perplexity

    assert choices.path is not None
    with _progress() as report:
        rows = perplexity(
            passes, choices.path, windows=choices.limit or 64, batch=choices.batch, seed=choices.seed, report=report
        )
    if choices.json:
        write_json({"settings": settings, "rows": rows})
        return
    columns = ("state", "tokens", "perplexity", "over frozen", "95 % interval")
    lines = [
        (
            r["condition"],
            r["tokens"],
            f"{r['perplexity']:.3f}",
            f"{r['over_frozen']['mean']:.4f}",
            f"{r['over_frozen']['low']:.4f} to {r['over_frozen']['high']:.4f}",
        )
        for r in rows
    ]
    table(columns, lines, right=columns[1:])


def _ordinary(choices: EvalChoices, passes: Any, settings: dict[str, Any]) -> None:
    from deltamem.evaluation.ordinary import ordinary

    with _progress() as report:
        rows = ordinary(passes, batch=choices.batch, seed=choices.seed, report=report)
    if choices.json:
        write_json({"settings": settings, "rows": rows})
        return
    lines = [
        (
            r["kind"],
            r["facts"],
            r["n"],
            f"{r['kl']['mean']:.4f} ({r['kl']['low']:.4f}-{r['kl']['high']:.4f})",
            _cell(r, "same"),
        )
        for r in rows
    ]
    columns = ("prompts", "facts in the state", "n", "KL to frozen, nats a token", "first ten words as frozen")
    table(columns, lines, right=columns[1:])


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from deltamem.backbones.progress import Progress

    with bars() as show:
        yield lambda stage, done, total: show(Progress(stage, done, total))
