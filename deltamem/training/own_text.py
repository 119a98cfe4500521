"""Text that the backbone writes by itself, with no conversation around it: articles, lists, tables, programs.

Memory is to leave it alone as it does ordinary talk. Gates that open on numbers open on those in it as well, and no
prompt with a reply shows them any.
"""

from __future__ import annotations

import torch

from deltamem.episodes.passes import Passes
from deltamem.training.made_up import by_itself, go_on
from deltamem.training.places.bank import Report

_BATCH = 16
_LENGTH, _SHORTEST = 160, 32
_BEGINNINGS = (
    "In 19",
    "In 20",
    "# Changes\n\n## 1.",
    "| Name | Year | Price |\n| --- | --- | --- |\n|",
    "The results of the study show that",
    "Table 2:",
    "The city has a population of",
    "def ",
    "1. ",
    "- ",
    "The first",
    "Chapter",
    "Q:",
    "At 8:30",
    "On March 1",
    "# ",
    "For example,",
    "$ ",
    "The price rose from",
    "It takes about",
)


@torch.no_grad()
def write_text(passes: Passes, count: int, seed: int = 0, report: Report | None = None) -> list[list[int]]:
    """Let the frozen backbone write.

    Args:
        passes: runs it.
        count: how many texts.
        seed: of the draws.
        report: called with what is being done and the share done.

    Returns:
        Token ids of each; fewer where the backbone ends most of them at once.
    """
    written: list[list[int]] = []
    with by_itself(passes, seed):
        for start in range(0, count, _BATCH):
            begun = [_beginning(passes, n) for n in range(start, min(start + _BATCH, count))]
            said = go_on(passes, begun, _LENGTH)
            texts = [ids + more for ids, (more, _) in zip(begun, said, strict=True)]
            written += [ids for ids in texts if len(ids) >= _SHORTEST]
            if report is not None:
                report("letting the backbone write", start / count)
    return written


def _beginning(passes: Passes, number: int) -> list[int]:
    return passes.form.text(_BEGINNINGS[number % len(_BEGINNINGS)])
