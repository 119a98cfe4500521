"""Episodes as tensors: what is written in one batch, what is asked in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltamem.chat_format import ChatFormat
from deltamem.training.episodes import Episode, Question


@dataclass(frozen=True)
class WriteBatch:
    """Histories, padded on the right; they follow the opening, which is not part of them.

    Attributes:
        ids: (B, T).
        valid: (B, T), false for padding.
        written: (B, T), true for what somebody said.
        segments: (B, T), the number of the message a token belongs to, -1 for none.
        values: (B, T), question number + 1 for tokens of a value that is asked about, else 0.
    """

    ids: Tensor
    valid: Tensor
    written: Tensor
    segments: Tensor
    values: Tensor


@dataclass(frozen=True)
class ReadBatch:
    """Questions with their answers, padded on the left so that the answers end together.

    Attributes:
        ids: (N, T).
        valid: (N, T).
        rows: (N,), the history each is asked about.
        targets: (N, K), the token expected after each of the last K positions but the last; -100 for none.
        weights: (N, K), 1 where the target is part of the remembered value, else 0.
    """

    ids: Tensor
    valid: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor


def write_batch(form: ChatFormat, episodes: Sequence[Episode]) -> WriteBatch:
    """Lay out histories as a chat would: what was said is written, what the template adds is read."""
    rows = [_history(form, episode) for episode in episodes]
    length = max(len(row[0]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    segments = torch.full((len(rows), length), -1)
    values = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (tokens, numbers, marks) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        valid[i, : len(tokens)] = True
        segments[i, : len(tokens)] = torch.tensor(numbers)
        values[i, : len(tokens)] = torch.tensor(marks)
    return WriteBatch(ids, valid, segments >= 0, segments, values)


def _history(form: ChatFormat, episode: Episode) -> tuple[list[int], list[int], list[int]]:
    tokens: list[int] = []
    segments: list[int] = []
    marks: list[int] = []
    message = 0
    for i, turn in enumerate(episode.history):
        parts: list[tuple[list[int], bool]] = [(form.following, False)] if i else []
        parts += [(form.text(turn.user), True), (form.answer, False), (form.text(turn.reply), True)]
        for part, said in parts:
            tokens += part
            segments += [message if said else -1] * len(part)
            marks += _find_values(form, part, episode.questions) if said else [0] * len(part)
            message += said
    return tokens, segments, marks


def _find_values(form: ChatFormat, tokens: list[int], questions: Sequence[Question]) -> list[int]:
    marks = [0] * len(tokens)
    for number, question in enumerate(questions, 1):
        if question.value is None:
            continue
        # A value stands after a space, or at the very start of a message.
        for lead in (" ", ""):
            value = form.text(lead + question.value)
            for at in range(len(tokens) - len(value) + 1):
                if tokens[at : at + len(value)] == value:
                    marks[at : at + len(value)] = [number] * len(value)
    return marks


def read_batch(form: ChatFormat, asked: Sequence[tuple[int, Question]]) -> ReadBatch:
    """Lay out questions, each with the history's row it is asked about. The answer's end is a target as well."""
    stop = form.following[0]  # the template's own end of a reply
    rows = []
    for row, question in asked:
        answer, value = _answer(form, question)
        rows.append((row, form.text(question.text) + form.answer, [*answer, stop], [*value, 0]))
    length = max(len(ask) + len(answer) - 1 for _, ask, answer, _ in rows)
    most = max(len(answer) for _, _, answer, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    targets = torch.full((len(rows), most), -100)
    weights = torch.zeros(len(rows), most)
    for i, (_, ask, answer, value) in enumerate(rows):
        tokens = ask + answer[:-1]
        ids[i, -len(tokens) :] = torch.tensor(tokens)
        valid[i, -len(tokens) :] = True
        targets[i, -len(answer) :] = torch.tensor(answer)
        weights[i, -len(answer) :] = torch.tensor(value, dtype=torch.float)
    return ReadBatch(ids, valid, torch.tensor([row for row, _ in asked]), targets, weights)


def _answer(form: ChatFormat, question: Question) -> tuple[list[int], list[int]]:
    """Tokens of the expected answer, and which of them are the value."""
    tokens = form.text(question.answer)
    if question.value is None:
        return tokens, [1] * len(tokens)
    marks = _find_values(form, tokens, [question])
    return tokens, [min(m, 1) for m in marks]
