"""The relations in `data/`: those of people, those made from nouns, and more words for those that are neither."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

from deltamem.episodes.relations import Relation


def told_relations() -> list[Relation]:
    """All relations of made-up people, the held-out ones among them."""
    return [relation_of(data) for data in read_data("relations.json")["relations"]]


def relation_of(data: dict[str, Any]) -> Relation:
    """One that a file in `data/` says in full."""
    return Relation(
        data["id"],
        data["kind"],
        tuple(data["statements"]),
        tuple(data["questions"]),
        data["answer"],
        data.get("possessed", ""),
        data.get("heldout", False),
    )


def families() -> list[Relation]:
    """Relations that differ in a noun alone from others of their family."""
    return [relation for data in read_data("families.json") for relation in family(data)]


def family(data: dict[str, Any]) -> list[Relation]:
    """Those of one family of a file in `data/`: its phrasings with each of its nouns for ``{n}``."""
    made = []
    for noun in data["nouns"]:
        said = {k: tuple(p.replace("{n}", noun) for p in data[k]) for k in ("statements", "questions")}
        mine, answer = data["possessed"].replace("{n}", noun), data["answer"].replace("{n}", noun)
        made.append(
            Relation(
                mine.replace(" ", "_"), data["kind"], said["statements"], said["questions"], answer, mine, family=True
            )
        )
    return made


def relatives() -> list[Relation]:
    """What people close to one do and are: where a sister lives, what a boss drives; of a friend also by name. Those of
    people that training never hears of are among them.
    """
    data = read_data("relatives.json")
    held_out, nouns = set(data["heldout_nouns"]), data["nouns"] + data["heldout_nouns"]
    made = []
    for way, said in data["ways"].items():
        for relation in family({**said, "possessed": "{n}", "nouns": nouns}):
            who = relation.possessed
            named = who == data["named"]
            # A friend's friend, or a sister's boss, is nobody that people tell of.
            possessed, new = who if named else "", f"{relation.id}_{way}"
            made.append(replace(relation, id=new, possessed=possessed, heldout=who in held_out, way=way, named=named))
    return made


@lru_cache(maxsize=1)
def _of_relatives() -> frozenset[str]:
    return frozenset(relation.id for relation in relatives())


def is_of_relatives(relation: str) -> bool:
    """Whether a relation, by its id, is about somebody close to one."""
    return relation in _of_relatives()


def singles(relations: list[Relation]) -> list[Relation]:
    """Those of the relations that are no family's, in more words, and others of that sort."""
    data = read_data("singles.json")
    made = []
    for relation in relations:
        more = data["phrasings"].get(relation.id)
        if more is not None:
            statements, questions = (
                (*more["statements"], *relation.statements),
                (*more["questions"], *relation.questions),
            )
            made.append(replace(relation, statements=_once(statements), questions=_once(questions)))
    for single in data["relations"]:
        # The last phrasing is held-out people's, who are told nothing of these.
        said = {k: (*single[k], single[k][0]) for k in ("statements", "questions")}
        made.append(Relation(single["id"], single["kind"], said["statements"], said["questions"], single["answer"]))
    return made


@lru_cache(maxsize=1)
def _alone() -> frozenset[str]:
    told = told_relations()
    return frozenset(relation.id for relation in (*told, *singles(told)))


def stands_alone(relation: str) -> bool:
    """Whether a relation, by its id, is none of a family that was made of nouns, none of numbers and about oneself."""
    return relation in _alone()


def unusual(relations: list[Relation], what: str) -> list[Relation]:
    """Relations with one way each to tell or to ask that training never sees, in words that are far from the others.

    Args:
        relations: some of which have such ways.
        what: statements or questions; the other is as it was.
    """
    data = read_data("singles.json")["phrasings"]
    ways = [(r, (way,)) for r in relations if r.id in data for way in data[r.id]["unusual"][what]]
    return [replace(r, statements=way) if what == "statements" else replace(r, questions=way) for r, way in ways]


def _once(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(phrasings))


def read_data(name: str) -> Any:
    """What one of the files in `data/` holds."""
    return json.loads((resources.files("deltamem.episodes") / "data" / name).read_text("utf-8"))
