"""Which relations differ in a noun, or in whose they are, alone."""

from __future__ import annotations

from functools import lru_cache

from deltamem.episodes.numbers import number_relations
from deltamem.episodes.relation_data import families, relatives, told_relations


def sort_of(relation: str) -> str:
    """The same for ids of relations that differ in a noun, or in whose they are, alone; for others the id itself."""
    return _sorts().get(relation, relation)


@lru_cache(maxsize=1)
def _sorts() -> dict[str, str]:
    owned = [r for r in (*told_relations(), *families()) if r.possessed]
    named = {r.id: r.answer.replace(r.possessed.split()[-1], "{n}", 1) for r in owned}
    told_of_others = {r.id: r.way for r in relatives()}
    return named | told_of_others | {r.id: r.id.rpartition("_")[2] for r in number_relations() if r.possessed}
