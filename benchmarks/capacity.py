"""How many facts a state can hold: by its size, its heads, what is written (tokens or messages), and by distance.

    python benchmarks/capacity.py --markdown benchmarks/capacity.md --plot benchmarks/capacity.png

This measures the state and not what a model makes of it: the frozen backbone reads told facts and their questions once;
for every shape of state, keys, gates and values are fitted on people of the training split (the warm start of
`deltamem train-adapter`); facts of held-out values and phrasings are written by the delta rule; and what the query of a
question reads is compared, over all layers, with the codes of all held-out values of its kind. Right is the one that is
nearest. A trained adapter's replies are measured by `deltamem eval recall`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.backbones.load import Backbone, load_backbone
from deltamem.chat_format import ChatFormat
from deltamem.episodes.batches import read_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode
from deltamem.episodes.passes import Passes
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split
from deltamem.pictures import new_figure, save_figure
from deltamem.training.addressing import Places, classes
from deltamem.training.fitting import fit_places
from deltamem.training.recorder import Recorder
from deltamem.training.warm_start import TokenCode, delta_layers

BATCH = 32
PLAIN = 4
"""Facts told where the distance is varied."""
DISTANCES = (0, 10, 50, 200)
SHAPES = (
    *(("TSW", rank, 1) for rank in (8, 16, 32)),
    *(("MSW", rank, 4) for rank in (8, 16, 32)),
    *(("SSW", rank, 1) for rank in (8, 16, 32)),
)


@dataclass(frozen=True)
class Told:
    """One turn as the frozen backbone reads it.

    Attributes:
        hidden: (layers, T, hidden size), the tokens that are written.
        messages: (T,), number of the message each belongs to.
        value: (T,), true for the value's token.
        asking: (layers, hidden size), the token before the value in the answer; None for small talk.
        about: the relation.
        kind: of the value.
        token: id of the value's token.
    """

    hidden: Tensor
    messages: Tensor
    value: Tensor
    asking: Tensor | None = None
    about: str = ""
    kind: str = ""
    token: int = -1

    def means(self) -> Tensor:
        """(layers, messages, hidden size)."""
        numbers = self.messages.unique()
        return torch.stack([self.hidden[:, self.messages == n].float().mean(1) for n in numbers], dim=1)


def facts(passes: Passes, people: SyntheticPeople, split: Split, count: int) -> list[Told]:
    """Turns that tell one fact, with the token that asks for it."""
    rng = random.Random(f"capacity-{split}")
    kinds = {r.id: r.kind for r in people.relations}
    found: list[Told] = []
    while len(found) < count:
        episodes = [people.episode(rng, Difficulty(), split, facts=1) for _ in range(BATCH)]
        asked = [(i, e.questions[0]) for i, e in enumerate(episodes)]
        batch = read_batch(passes.form, asked)
        first = batch.ids.shape[1] - batch.values.shape[1]
        places = torch.zeros_like(batch.valid)
        spots = [row.nonzero().flatten().tolist() for row in batch.values]
        for i, spot in enumerate(spots):
            places[i, first + spot[0]] = len(spot) == 1
        with torch.no_grad(), Recorder(passes.memory, places) as seen:
            passes.read(batch, None)
        asking = iter(seen.stacked().unbind(1))
        for i, turn in enumerate(turns(passes, episodes)):
            if len(spots[i]) == 1:
                token, topic = int(batch.targets[i, spots[i][0]]), asked[i][1].topic
                found.append(Told(*turn, next(asking), topic, kinds[topic], token))
    return found[:count]


def turns(passes: Passes, episodes: Sequence[Episode]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Hidden states, messages and values of what is written, episode by episode, each by itself."""
    found = []
    for start in range(0, len(episodes), BATCH):
        batch = write_batch(passes.form, episodes[start : start + BATCH])
        with torch.no_grad(), passes.memory.disabled(), Recorder(passes.memory, batch.written, torch.bfloat16) as seen:
            passes.run(batch)
        at, hidden = 0, seen.stacked()
        for written, segments, values in zip(batch.written, batch.segments, batch.values, strict=True):
            count = int(written.sum())
            found.append((hidden[:, at : at + count].clone(), segments[written], values[written] > 0))
            at += count
    return found


def places(told: Sequence[Told], talk: Sequence[Told], whole_messages: bool) -> tuple[Places, Tensor]:
    """What keys, gates and values are fitted on, and the tokens that are to come back."""
    numbers: dict[Hashable, int] = {}
    kept, names, ids, rest = [], [], [], []
    for turn in told:
        if whole_messages:
            means = turn.means()
            saying = turn.messages[turn.value].unique().tolist()
            chosen = torch.tensor([n in saying for n in turn.messages.unique().tolist()])
            kept.append(means[:, chosen])
            rest.append(means[:, ~chosen])
        else:
            kept.append(turn.hidden[:, turn.value].float())
            rest.append(turn.hidden[:, ~turn.value][:, ::4].float())
        names += [turn.about] * kept[-1].shape[1]
        ids += [turn.token] * kept[-1].shape[1]
    rest += [turn.means() if whole_messages else turn.hidden[:, ::4].float() for turn in talk]
    asking = torch.stack([turn.asking for turn in told if turn.asking is not None], dim=1)
    idle = torch.cat([turn.hidden[:, ::4].float() for turn in talk], dim=1)
    known = Places(
        torch.cat(kept, 1),
        classes(names, numbers),
        asking,
        classes([turn.about for turn in told], numbers),
        torch.cat(rest, 1),
        idle,
    )
    return known, torch.tensor(ids)


@torch.no_grad()
def recalled(
    memory: DeltaMemory, code: TokenCode, weights: Tensor, pools: dict[str, Tensor], histories: Sequence[list[Told]]
) -> list[bool]:
    """Write histories, ask for each of their facts, and say which come back; `pools` are candidates by kind."""
    codes = {kind: code.of(ids) * weights[:, None] for kind, ids in pools.items()}  # (candidates, layers, width)
    layers = delta_layers(memory)
    found = []
    for history in histories:
        if memory.config.writes_segments:
            hidden = torch.cat([turn.means() for turn in history], dim=1)
        else:
            hidden = torch.cat([turn.hidden.float() for turn in history], dim=1)
        asked = [turn for turn in history if turn.asking is not None]
        reads = []
        for i, layer in enumerate(layers):
            empty = torch.zeros(1, memory.config.num_state_heads, memory.config.rank, memory.config.rank)
            state = layer.write(layer.told(hidden[i][None]), empty)
            asking = torch.stack([turn.asking[i] for turn in asked if turn.asking is not None])
            reads.append(layer.read(asking[None], state)[0])
        read = torch.stack(reads, dim=1)  # (facts, layers, width)
        for turn, own in zip(asked, read, strict=True):
            best = (codes[turn.kind] * own).sum((1, 2)).argmax()
            found.append(int(pools[turn.kind][best]) == turn.token)
    return found


def histories(rng: random.Random, told: Sequence[Told], talk: Sequence[Told], count: int, distance: int, questions: int
              ) -> list[list[Told]]:  # fmt: skip
    """Chats with so many different facts, and so much small talk after them."""
    made = []
    for _ in range(-(-questions // count)):
        history: list[Told] = []
        for turn in rng.sample(told, len(told)):
            if len(history) < count and all(t.about != turn.about and t.token != turn.token for t in history):
                history.append(turn)
        made.append(history + [rng.choice(talk) for _ in range(distance)])
    return made


def config_of(kind: str, rank: int, heads: int) -> DeltaMemConfig:
    """The shape of state, with the rest as in the adapters that ship."""
    return DeltaMemConfig(
        rank=rank,
        num_state_heads=heads,
        memory_write_granularity="message_mean" if kind == "SSW" else "token",
        state_update_mode="no_lambda",
        rankwise_gates=False,
        delta_heads=("o",),
    )


def main() -> None:
    """Print a table, and write it and a plot where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--train", type=int, default=1000, help="facts that keys, gates and values are fitted on")
    parser.add_argument("--test", type=int, default=400, help="facts that are told and asked")
    parser.add_argument("--questions", type=int, default=192, help="per figure")
    parser.add_argument("--facts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=400, help="of the fit")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    backbone: Backbone = load_backbone(options.backbone, "cpu", quantize="none", dtype=torch.bfloat16)
    form = ChatFormat.of(backbone.tokenizer, stops=backbone.stops)
    people = SyntheticPeople(backbone.tokenizer)
    memory = DeltaMemory.attach(backbone.model, config_of("TSW", 8, 1))
    passes = Passes(memory, form)
    train, test = facts(passes, people, "train", options.train), facts(passes, people, "heldout", options.test)
    small = {
        split: [Told(*t) for t in turns(passes, [Episode((turn,), ()) for turn in people.talk(split)])]
        for split in ("train", "heldout")
    }
    pools = {}
    for kind in ("name", "word"):
        words = (form.text(" " + word) for word in people.values.single(kind, "heldout"))
        tokens = {ids[0] for ids in words if len(ids) == 1} | {t.token for t in test if t.kind == kind}
        pools[kind] = torch.tensor(sorted(tokens))
    chats = [
        histories(random.Random(f"{n}-{d}"), test, small["heldout"], n, d, options.questions)
        for n, d in [*((n, 0) for n in options.facts), *((PLAIN, d) for d in DISTANCES)]
    ]
    lines = [
        f"backbone {backbone.name}; {len(train)} facts fitted on, {len(test)} held out; a value is picked from "
        f"{len(pools['name'])} names or {len(pools['word'])} words; {options.questions} questions a figure",
        "",
        "| state | r | heads | numbers a layer | overlap of keys | "
        + " | ".join([*(f"{n} facts" for n in options.facts), *(f"{PLAIN}, then {d} turns" for d in DISTANCES)])
        + " |",
        "|" + " --- |" * (5 + len(options.facts) + len(DISTANCES)),
    ]
    print("\n".join(lines))
    fitted = {whole: places(train, small["train"], whole) for whole in (False, True)}
    curves = []
    for kind, rank, heads in SHAPES:
        memory.detach()
        torch.manual_seed(0)
        memory = DeltaMemory.attach(backbone.model, config_of(kind, rank, heads))
        known, ids = fitted[kind == "SSW"]
        fit = fit_places(memory, known, _with_rest(ids, known), steps=options.steps)
        weights = torch.tensor(fit.explained).clamp_min(0)
        code = TokenCode(memory)
        answers = [recalled(memory, code, weights, pools, asked) for asked in chats]
        row = [sum(right) / len(right) for right in answers]
        overlap = sum(fit.overlap) / len(fit.overlap)
        cells = [kind, rank, heads, heads * rank * rank, f"{overlap:.2f}", *(f"{x:.0%}" for x in row)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        print(lines[-1], flush=True)
        curves.append((f"{kind}, r = {rank}, {heads} head{'s' if heads > 1 else ''}", row))
    memory.detach()
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", "utf-8")
    if options.plot:
        draw(curves, options.facts, options.plot)


def _with_rest(ids: Tensor, known: Places) -> Tensor:
    """Token ids of what was told; what else is written should say nothing, so its code is no token's but noise."""
    rest = torch.randint(int(ids.max()), (known.other_written.shape[1],), generator=torch.Generator().manual_seed(0))
    return torch.cat([ids, rest])


def draw(curves: Sequence[tuple[str, list[float]]], counts: Sequence[int], path: Path) -> None:
    """Recall against facts told, and against distance."""
    figure = new_figure(11, 4.4)
    near, far = figure.subplots(1, 2, sharey=True)
    styles = {"TSW": "-", "MSW": "--", "SSW": ":"}
    colours = {"8": "tab:blue", "16": "tab:orange", "32": "tab:green"}
    for name, row in curves:
        style = {"linestyle": styles[name[:3]], "color": colours[name.split("r = ")[1].split(",")[0]], "marker": "o"}
        near.plot(range(len(counts)), row[: len(counts)], label=name, markersize=3, **style)
        far.plot(range(len(DISTANCES)), row[len(counts) :], markersize=3, **style)
    for axes, ticks, label in zip(
        (near, far), (counts, DISTANCES), ("facts told", f"turns of small talk after {PLAIN} facts"), strict=True
    ):
        axes.set_xticks(range(len(ticks)), [str(t) for t in ticks])
        axes.set_xlabel(label)
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(-0.02, 1.02)
    near.set_ylabel("values found in the state")
    near.legend(fontsize=7, handlelength=4)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
