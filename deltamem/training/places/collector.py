"""What a bank holds, collected batch by batch as the frozen backbone reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.batches import ReadBatch, read_batch, text_batch, write_batch
from deltamem.episodes.episode import Episode, Question
from deltamem.episodes.numbers import is_number
from deltamem.episodes.passes import Passes
from deltamem.episodes.relation_data import is_of_relatives, stands_alone
from deltamem.key_pairs import lent
from deltamem.training.places.bank import Bank, Fact, Topic
from deltamem.training.places.tail import Tail
from deltamem.training.recorder import Recorder

_REST = 0.2
"""Share that is kept of the places outside of a value, but for those right after one, and where a sentence begins: they
are many, and much alike."""
_OTHERS = 0.05
"""Share of the tokens that tell nothing that is kept, for the gates."""
_OTHERS_AFTER = 0.3
"""The same of those right after a value, as the "and" of "My cat is called Misty and I work as a nurse."."""
_BEGINS = 3
"""Tokens of a reply that count as its beginning."""
_SORTS = ("opening_numbers", "opening_relatives", "opening_alone")
_MARKS_BESIDES = ("opening_begins", *_SORTS, "opening_starts", "idle_begins", "idle_unseen")
_MARKS = ("targets", "values", "begun", *_MARKS_BESIDES)
_LIKELY = 8
"""Of the tokens that the frozen backbone thinks likeliest at a value's place, so many count as candidates."""

_SAYS_NOTHING = {"a", "an", "the", "my", "i", "love"}
"""Words before a value that do not say what it is about."""


class Collector:
    """Reads, and keeps what a bank is made of.

    Args:
        passes: runs the frozen backbone; the memory's corrections go to the last layer.
        generator: chooses what is kept of what is much alike.
        kept_on: where hidden states are kept.
    """

    def __init__(self, passes: Passes, generator: torch.Generator, kept_on: torch.device) -> None:
        self._passes, self._generator, self._kept_on = passes, generator, kept_on
        self._tail = Tail(passes.memory)
        self._facts: list[Fact] = []
        self._stock: list[Fact] = []
        self._hidden: dict[str, list[Tensor]] = {
            k: [] for k in ("told", "before", "other", "places", "openings", "idle")
        }
        self._residuals: dict[str, list[Tensor]] = {k: [] for k in ("other", "places", "openings", "idle")}
        self._marks: dict[str, list[Tensor]] = {k: [] for k in _MARKS}
        self._ids: list[Tensor] = []
        self._counts = {"told": 0, "places": 0}
        self._unsaid: Counter[int] = Counter()

    def add(self, episodes: Sequence[Episode]) -> None:
        """Episodes that are told and asked about."""
        facts = [_facts(episode) for episode in episodes]
        self._facts += [fact for own in facts for fact in own.values()]
        self._tell(episodes, facts, _OTHERS)
        asked = [(i, q) for i, episode in enumerate(episodes) for q in episode.questions]
        asked.sort(key=lambda pair: pair[1].length)
        # As many windows at a time as histories.
        for start in range(0, len(asked), len(episodes)):
            self._ask(episodes, asked[start : start + len(episodes)], facts)

    def put_by(self, episodes: Sequence[Episode]) -> None:
        """Episodes that are told alone."""
        facts = [_facts(episode) for episode in episodes]
        self._stock += [fact for own in facts for fact in own.values() if not fact.early]
        self._tell(episodes, facts, 0.0)

    def _tell(self, episodes: Sequence[Episode], facts: Sequence[dict[int, Fact]], others: float) -> None:
        batch = write_batch(self._passes.form, episodes)
        told = batch.values > 0
        share = torch.full(told.shape, others)
        share[:, 1:][told[:, :-1]] = _OTHERS_AFTER if others else 0.0
        some = torch.rand(told.shape, generator=self._generator) < share
        # A value that was corrected later is marked as nobody's, and is no token that tells nothing.
        plain = torch.tensor([all(q.kind != "corrected" for q in e.asked) for e in episodes])
        other = batch.written & ~told & some & plain[:, None]
        with (
            torch.no_grad(),
            self._passes.memory.disabled(),
            self._record("told", told),
            self._record_before(told, batch.written),
            self._record("other", other),
            self._tail.record(other, self._residuals["other"]),
        ):
            self._passes.run(batch)
        self._ids.append(batch.ids[told])
        for (i, _), number in zip(told.nonzero().tolist(), batch.values[told].tolist(), strict=True):
            facts[i][number].told.append(self._counts["told"])
            self._counts["told"] += 1
        for episode, own in zip(episodes, facts, strict=True):
            for n, noted in ((n, q) for n, q in enumerate(episode.asked, 1) if q.kind == "noted"):
                # The reply to a statement is made when it has been written.
                said = [m for m, q in enumerate(episode.asked, 1) if q.value and q.value in noted.text and m in own]
                own[n].told = sorted(token for m in said for token in own[m].told)

    def _ask(
        self, episodes: Sequence[Episode], asked: Sequence[tuple[int, Question]], facts: Sequence[dict[int, Fact]]
    ) -> None:
        batch = read_batch(self._passes.form, asked)
        counts = batch.targets != -100
        value = batch.values > 0
        after = F.pad(value[:, :-1], (1, 0))
        rest = counts & ~value & ~after & ~self._begins_sentence(batch.targets, counts)
        kept = counts & ~(rest & (torch.rand(rest.shape, generator=self._generator) >= _REST))
        self._read("places", batch, kept)
        self._marks["targets"].append(batch.targets[kept])
        self._marks["values"].append(batch.values[kept] > 0)
        # As lists: numbers are slow to look up in tensors one by one.
        marks = zip(counts.tolist(), kept.tolist(), value.tolist(), batch.targets.tolist(), strict=True)
        for (i, window), (counting, keeping, in_value, targets) in zip(asked, marks, strict=True):
            asks = [q for q in (*window.earlier, window) if q.kind != "ordinary"]
            numbers = [episodes[i].asked.index(question) + 1 for question in asks]
            seen = _seen(episodes[i], window, facts[i])
            for number in numbers:
                facts[i][number].seen = seen
            at = -1
            for k in (k for k, counted in enumerate(counting) if counted):
                # Targets of one answer follow each other; between two answers there are positions without.
                at += k == 0 or not counting[k - 1]
                if not keeping[k]:
                    continue
                which = min(at, len(asks) - 1)
                facts[i][numbers[which]].asked.append(self._counts["places"])
                self._counts["places"] += 1
                if asks[which].kind == "unknown" and in_value[k] and not (k and in_value[k - 1]):
                    self._unsaid[targets[k]] += 1

    def _begins_sentence(self, targets: Tensor, counts: Tensor) -> Tensor:
        """Where another sentence of a reply begins, or the reply ends after one, (N, K)."""
        # After "Got it." the backbone likes to go on about the value itself, as it has just read it.
        ids, each = torch.unique(targets.clamp_min(0), return_inverse=True)
        stops = torch.tensor([self._passes.form.tokenizer.decode([i]).endswith(".") for i in ids.tolist()])
        return F.pad((stops[each] & counts)[:, :-1], (1, 0)) & counts

    def begin(self, questions: Sequence[Question]) -> None:
        """How replies begin."""
        batch = read_batch(self._passes.form, [(0, q) for q in questions])
        kept = batch.targets != -100
        kept[:, -1] = False  # a reply does not end there
        self._read("openings", batch, kept)
        self._marks["begun"].append(batch.targets[kept])
        self._marks["opening_begins"].append(_first_few(kept))
        self._marks["opening_starts"].append((_first(kept) | self._begins_sentence(batch.targets, kept))[kept])
        for mark, is_of in zip(_SORTS, (is_number, is_of_relatives, stands_alone), strict=True):
            of = torch.tensor([is_of(question.topic) for question in questions])
            self._marks[mark].append(of[kept.nonzero()[:, 0]])

    def leave_alone(self, questions: Sequence[Question], unseen: Sequence[bool]) -> None:
        """Ordinary talk, with the frozen backbone's replies, and of which of it that is true (`Bank.idle_unseen`)."""
        batch = read_batch(self._passes.form, [(0, q) for q in questions])
        kept = batch.targets != -100
        self._read("idle", batch, kept)
        self._marks["idle_begins"].append(_first_few(kept))
        self._marks["idle_unseen"].append(torch.tensor(unseen)[kept.nonzero()[:, 0]])

    def leave_text_alone(self, texts: Sequence[Sequence[int]]) -> None:
        """The same for text, all of it."""
        batch = text_batch(texts)
        kept = batch.targets != -100
        self._read("idle", batch, kept)
        every = torch.ones(int(kept.sum()), dtype=torch.bool)
        self._marks["idle_begins"].append(~every)
        self._marks["idle_unseen"].append(every)

    def _read(self, kind: str, batch: ReadBatch, kept: Tensor) -> None:
        """Keep what is seen at those places of the batch's last ones (N, K)."""
        places = torch.zeros_like(batch.valid)
        places[:, -kept.shape[1] :] = kept
        with torch.no_grad(), self._record(kind, places), self._tail.record(places, self._residuals[kind]):
            self._passes.look(batch)

    @contextmanager
    def _record_before(self, places: Tensor, written: Tensor) -> Iterator[None]:
        """Keep the hidden states of what is written right before those places."""
        if self._passes.memory.config.keys != "pair":
            yield
            return
        if fading := self._passes.memory.config.fading:
            every = torch.ones_like(places)
            with Recorder(self._passes.memory, every) as seen:
                yield
            found = seen.stacked().unflatten(1, places.shape)
            passed = [lent(layer, None, written.to(layer.device), fading)[places.to(layer.device)] for layer in found]
            self._hidden["before"].append(torch.stack(passed).bfloat16().to(self._kept_on))
            return
        before = F.pad(places[:, 1:], (0, 1)) & written
        with Recorder(self._passes.memory, before, torch.bfloat16) as seen:
            yield
        found = seen.stacked().to(self._kept_on)
        # Where a message begins with a value there is nothing before it.
        there = F.pad(before[:, :-1], (1, 0))[places]
        kept = found.new_zeros(len(found), len(there), found.shape[-1])
        kept[:, there] = found
        self._hidden["before"].append(kept)

    @contextmanager
    def _record(self, kind: str, places: Tensor) -> Iterator[None]:
        with Recorder(self._passes.memory, places, torch.bfloat16) as seen:
            yield
        self._hidden[kind].append(seen.stacked().to(self._kept_on))

    def bank(self) -> Bank:
        """All of it; nothing is left here."""
        hidden: dict[str, Tensor] = {}
        for kind in list(self._hidden):  # one at a time: together they are half of what is in memory
            parts = self._hidden.pop(kind)
            hidden[kind] = torch.cat(parts, dim=1) if parts else hidden["told"][:, :0]
        empty = self._residuals["places"][0][:0]
        residuals = {kind: torch.cat([empty, *parts]) for kind, parts in self._residuals.items()}
        targets, values = (torch.cat(self._marks[k]) for k in ("targets", "values"))
        begun = torch.cat([targets[:0], *self._marks["begun"]])
        begins = {k: torch.cat([values[:0], *self._marks[k]]) for k in _MARKS_BESIDES}
        likely = [
            self._tail(part.to(self._passes.device)).topk(_LIKELY).indices.flatten().cpu()
            for part in residuals["places"][values].split(512)
        ]
        candidates = torch.unique(torch.cat([targets, begun, *self._ids, *likely]))
        return Bank(
            [f for f in self._facts if f.told and f.asked],
            [f for f in self._facts if not f.told and f.asked],
            hidden["told"],
            hidden["before"],
            torch.cat(self._ids),
            hidden["other"],
            residuals["other"],
            hidden["places"],
            residuals["places"],
            targets,
            values,
            hidden["openings"],
            residuals["openings"],
            begun,
            begins["opening_begins"],
            begins["opening_numbers"],
            begins["opening_relatives"],
            begins["opening_starts"],
            begins["opening_alone"],
            hidden["idle"],
            residuals["idle"],
            begins["idle_begins"],
            begins["idle_unseen"],
            candidates,
            max(self._unsaid, key=self._unsaid.__getitem__, default=int(candidates[0])),
            [f for f in self._stock if f.told],
        )


def _first(kept: Tensor) -> Tensor:
    """The first kept place of each reply, (N, K)."""
    return kept & (kept.cumsum(1) == 1)


def _first_few(kept: Tensor) -> Tensor:
    """Which of the kept places of replies (N, K) are their first few, (n,)."""
    return (kept.cumsum(1) <= _BEGINS)[kept]


def _facts(episode: Episode) -> dict[int, Fact]:
    """What it tells and asks, by the number of the question."""
    return {
        n: Fact(
            _topic(q),
            early=q.kind != "noted" and _early(q, episode),
            noted=q.kind == "noted",
            corrects=q.kind == "corrected",
        )
        for n, q in enumerate(episode.asked, 1)
        if q.kind != "ordinary"
    }


def _seen(episode: Episode, window: Question, facts: dict[int, Fact]) -> list[int]:
    """Numbers of told tokens of values that stand in what was said before a question in its window."""
    said = " ".join(text for turn in window.earlier if turn.kind == "ordinary" for text in (turn.text, turn.answer))
    there = [n for n, q in enumerate(episode.asked, 1) if q.kind not in ("unknown", "noted") and q.value]
    return [token for n in there if (episode.asked[n - 1].value or "") in said for token in facts[n].told]


def _topic(question: Question) -> Topic:
    return Topic(question.topic, question.owner)


def _early(question: Question, episode: Episode) -> bool:
    """Whether the value was told before what it is the value of."""
    if question.kind == "unknown" or not question.value:
        return False
    told = [turn.user.partition(question.value)[0] for turn in episode.history if question.value in turn.user]
    # What the last sentence says before it; a correction is told last.
    words = re.split(r"[.,:!?]", told[-1])[-1].lower().split() if told else ["what"]
    return not set(words) - _SAYS_NOTHING
