"""Episodes as tensors: what is written in one batch, what is asked in another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.chat_format import ChatFormat
from deltamem.episodes.episode import Episode, Question


@dataclass(frozen=True)
class WriteBatch:
    """Histories, padded on the right; they follow the opening, which is not part of them.

    Attributes:
        ids: (B, T).
        valid: (B, T), false for padding.
        written: (B, T), true for what somebody said.
        segments: (B, T), the number of the message a token belongs to, -1 for none.
        values: (B, T), question number + 1 (in `Episode.asked`) for tokens of a value that is asked about, else 0.
        reads: (B, T), true for tokens of a reply and the one before it.
    """

    ids: Tensor
    valid: Tensor
    written: Tensor
    segments: Tensor
    values: Tensor
    reads: Tensor


@dataclass(frozen=True)
class ReadBatch:
    """Questions with their answers, padded on the left so that the answers end together.

    Attributes:
        ids: (N, T).
        valid: (N, T).
        rows: (N,), the history each is asked about.
        targets: (N, K), the token expected after each of the last K positions but the last; -100 for none.
        values: (N, K), question number in the window + 1 where the target is part of a remembered value, else 0.
        starts: (N, K), true where the target is the first token of an answer.
        reads: (N, T), true for tokens of an answer and the one before it.
    """

    ids: Tensor
    valid: Tensor
    rows: Tensor
    targets: Tensor
    values: Tensor
    starts: Tensor
    reads: Tensor

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the M positions that count, row by row: targets, which are of a value, which begin an answer; (M,) each.

        The first token of an answer that is part of its value counts as value alone.
        """
        present = self.targets != -100
        values = self.values[present] > 0
        return self.targets[present], values, self.starts[present] & ~values


def write_batch(form: ChatFormat, episodes: Sequence[Episode]) -> WriteBatch:
    """Lay out histories as a chat would: what was said is written, what the template adds is read."""
    rows = [_history(form, episode) for episode in episodes]
    length = max(1, *(len(row[0]) for row in rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    segments = torch.full((len(rows), length), -1)
    values = torch.zeros(len(rows), length, dtype=torch.long)
    reads = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (tokens, numbers, marks, reading) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        valid[i, : len(tokens)] = True
        segments[i, : len(tokens)] = torch.tensor(numbers)
        values[i, : len(tokens)] = torch.tensor(marks)
        reads[i, : len(tokens)] = torch.tensor(reading)
    return WriteBatch(ids, valid, segments >= 0, segments, values, reads)


def _history(form: ChatFormat, episode: Episode) -> tuple[list[int], list[int], list[int], list[bool]]:
    tokens: list[int] = []
    reads: list[bool] = []
    segments: list[int] = []
    marks: list[int] = []
    message = 0
    for i, turn in enumerate(episode.history):
        parts: list[tuple[list[int], bool]] = [(form.following, False)] if i else []
        parts += [(form.text(turn.user), True), (form.answer, False), (form.text(turn.reply), True)]
        for part, said in parts:
            tokens += part
            segments += [message if said else -1] * len(part)
            marks += _find_values(form, part, episode.asked) if said else [0] * len(part)
            reads += [False] * len(part)
            message += said
        # The last part was the reply.
        reads[len(reads) - len(part) - 1 :] = [True] * (len(part) + 1)
    return tokens, segments, marks, reads


def _find_values(form: ChatFormat, tokens: list[int], questions: Sequence[Question]) -> list[int]:
    marks = [0] * len(tokens)
    # Where one value stands within another, it is the longer one that was said.
    for number, question in sorted(enumerate(questions, 1), key=lambda pair: len(pair[1].value or "")):
        if question.value and question.kind not in ("unknown", "noted"):
            for at, length in _places(form, tokens, question.value):
                marks[at : at + length] = [number] * length
    return marks


def _places(form: ChatFormat, tokens: list[int], value: str) -> Iterator[tuple[int, int]]:
    """Where a value stands, and how many tokens it takes there: after a space, or at the very start."""
    for lead in (" ", ""):
        text = lead + value
        ids = form.text(text)
        for at in range(len(tokens) - len(ids) + 1):
            end = at + len(ids)
            if tokens[at:end] == ids and not _amid(form, text, tokens[max(0, at - 2) : at], tokens[end : end + 2]):
                yield at, len(ids)


def _amid(form: ChatFormat, text: str, before: list[int], after: list[int]) -> bool:
    """Whether a text stands within a longer number, as "15" in "9:15" and in "3151", by the tokens beside it."""
    goes_on = text[:1].isdigit() and re.search(r"\d:?$", form.tokenizer.decode(before))
    gone_on = text[-1:].isdigit() and re.match(r":?\d", form.tokenizer.decode(after))
    return bool(goes_on or gone_on)


def read_batch(form: ChatFormat, asked: Sequence[tuple[int, Question]]) -> ReadBatch:
    """Lay out questions, each with the history's row it is asked about. The answer's end is a target as well."""
    rows = [_window(form, question) for _, question in asked]
    length = max(len(tokens) for tokens, *_ in rows)
    most = max(len(tokens) - next(i for i, t in enumerate(targets) if t != -100) for tokens, targets, *_ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    targets = torch.full((len(rows), length), -100)
    values = torch.zeros(len(rows), length, dtype=torch.long)
    starts = torch.zeros(len(rows), length, dtype=torch.bool)
    reads = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (tokens, expected, value, firsts, reading) in enumerate(rows):
        for first in firsts:
            starts[i, length - len(tokens) + first] = True
        ids[i, -len(tokens) :] = torch.tensor(tokens)
        valid[i, -len(tokens) :] = True
        targets[i, -len(tokens) :] = torch.tensor(expected)
        values[i, -len(tokens) :] = torch.tensor(value)
        reads[i, -len(tokens) :] = torch.tensor(reading)
    of = torch.tensor([row for row, _ in asked])
    return ReadBatch(ids, valid, of, targets[:, -most:], values[:, -most:], starts[:, -most:], reads)


def text_batch(texts: Sequence[Sequence[int]]) -> ReadBatch:
    """Token ids of text by itself: each is to be said after those before it, and all of them are read at."""
    ids, valid = left_padded(texts)
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:].masked_fill(~valid[:, :-1], -100)
    nothing = torch.zeros_like(valid)
    return ReadBatch(ids, valid, torch.arange(len(texts)), targets, torch.zeros_like(ids), nothing, valid)


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (N, T) that end together, and which of them are there (N, T)."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    valid = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, -len(row) :] = torch.tensor(row)
        valid[i, -len(row) :] = True
    return ids, valid


def ask_tokens(form: ChatFormat, question: Question) -> list[int]:
    """What follows the opening when a question is put: earlier turns, the question, the generation prompt."""
    tokens: list[int] = []
    for q in (*question.earlier, question):
        tokens += (form.following if tokens else []) + form.text(q.text) + form.answer
        tokens += form.text(q.answer) if q is not question else []
    return tokens


def _window(form: ChatFormat, question: Question) -> tuple[list[int], list[int], list[int], list[int], list[bool]]:
    """Tokens, what is expected after each (-100: nothing), which of those are values, where answers begin, and which
    tokens read.
    """
    reads: list[bool] = []
    tokens: list[int] = []
    expected: list[int] = []
    marks: list[int] = []
    firsts: list[int] = []
    for number, q in enumerate((*question.earlier, question), 1):
        answer, value = _answer(form, q, number)
        counts = q.kind != "ordinary" or q is question
        ask = (form.following if tokens else []) + form.text(q.text) + form.answer
        # What follows a position is expected there: from the last of `ask` to the last of the answer.
        quiet = [-100] * (len(ask) - 1)
        firsts += [len(tokens) + len(quiet)] if counts else []
        tokens += ask + answer
        reads += [False] * len(quiet) + [True] * (len(answer) + 1)
        given = len(form.text(q.given)) if counts else len(answer) + 1
        expected += quiet + [-100] * given + [*answer, form.following[0]][given:]
        marks += [0] * len(quiet) + ([*value, 0] if counts else [0] * (len(answer) + 1))
    return tokens, expected, marks, firsts, reads


def expected_tokens(form: ChatFormat, question: Question) -> tuple[list[int], list[int]]:
    """Tokens of the expected answer and of its end, and 1 at those that are the value, 0 elsewhere."""
    tokens, marks = _answer(form, question, 1)
    return [*tokens, form.following[0]], [*marks, 0]


def _answer(form: ChatFormat, question: Question, number: int) -> tuple[list[int], list[int]]:
    """Tokens of the expected answer, the question's number at those that are the value, 0 elsewhere."""
    tokens = form.text(question.answer)
    if question.value is None:
        return tokens, [number] * len(tokens)
    marks = [0] * len(tokens)
    for value in filter(None, (question.value, *question.also)):
        for at, length in _places(form, tokens, value):
            marks[at : at + length] = [number] * length
    return tokens, marks
