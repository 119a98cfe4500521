"""A generator of made-up people: facts told over several turns, small talk between, questions later.

What an episode draws from is split: values and phrasings of the `heldout` split, and whole relations, are never used
for training. Relations, phrasings and talk are in `data/`; the values are words of the tokenizer's own vocabulary
and words made up from syllables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.grouped import grouped
from deltamem.episodes.numbers import number_relations
from deltamem.episodes.phrasing import Phrasing
from deltamem.episodes.relation_data import families, read_data, relatives, singles, told_relations, unusual
from deltamem.episodes.relations import Fact, Relation
from deltamem.episodes.values import Values
from deltamem.episodes.windows import windows
from deltamem.episodes.words import Split

_SAID_BACK = 0.8
"""Share of messages that tell something whose replies say it back, in one chat."""
_WAYS, _OF_A_WAY, _FRIENDS = 4, 2, 0.5
"""Things that are told of people close to one, of how many people each, and the chance of each that it is a friend's as
well."""
_BY_NAME = 0.6
"""Share of what is told of friends that is told of them by name, where others are told of."""


class SyntheticPeople:
    """Makes episodes, the same ones for the same random number generator.

    Args:
        tokenizer: its words are the values.

    Raises:
        DataError: the tokenizer has too few such words.

    Attributes:
        values: what is told of them.
        relations: those used for training.
        families: more of them, which differ in a noun alone; some say the same in other words.
        singles: those of `relations` that are no family's, in more words, and others of that sort.
        numbers: others, whose values are numbers.
        relatives: others, about people close to one; some are numbers.
        heldout_relations, heldout_relatives: those that never are.
        ordinary: prompts on which memory is to change nothing, by split.
        answered: some of those held out, with answers.
        small_talk: turns put between facts; a trainer adds some with the backbone's own replies.
        phrasing: puts all of it into words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.values = Values(tokenizer)
        data, relations = read_data("relations.json"), told_relations()
        self.relations = [r for r in relations if not r.heldout]
        self.families = families()
        self.singles = singles(self.relations)
        self.numbers = number_relations()
        close = relatives()
        self.relatives = [r for r in close if not r.heldout]
        self.heldout_relatives = [r for r in close if r.heldout]
        self.heldout_relations = [r for r in relations if r.heldout]
        ordinary = read_data("ordinary.json")
        self.ordinary: dict[Split, list[str]] = {"train": ordinary["train"], "heldout": ordinary["heldout"]}
        self.answered = [Turn(prompt, answer) for prompt, answer in ordinary["answered"]]
        talk = read_data("small_talk.json")
        self.phrasing = Phrasing(data, talk["acknowledgements"])
        self.small_talk = [Turn(user, reply) for user, reply in talk["train"]]
        self._heldout_talk = [Turn(user, reply) for user, reply in talk["heldout"]]
        self._mentions = [(sort, Turn(*turn)) for sort, turns in talk["mentions"].items() for turn in turns]
        # The last third of the names is for held-out people.
        cut = len(data["people"]) * 2 // 3
        self._people: dict[Split, list[str]] = {"train": data["people"][:cut], "heldout": data["people"][cut:]}

    @cached_property
    def unusual(self) -> dict[str, list[Relation]]:
        """Some of `relations`, each with one way to tell it ("statements") or to ask for it ("questions") that is out
        of the ordinary, all of them held out.
        """
        return {what: unusual(self.relations, what) for what in ("statements", "questions")}

    def talk(self, split: Split) -> list[Turn]:
        """Turns of small talk."""
        return self.small_talk if split == "train" else self._heldout_talk

    def episode(
        self,
        rng: random.Random,
        difficulty: Difficulty,
        split: Split,
        facts: int | None = None,
        among: Sequence[Relation] | None = None,
        values: Split | None = None,
    ) -> Episode:
        """One episode: up to `difficulty.facts` facts (or exactly `facts`), each asked about.

        Args:
            rng: decides everything.
            difficulty: what the episode may hold.
            split: of phrasings, people and small talk, and of values where `values` says nothing else.
            facts: how many facts; None for a random number.
            among: take the facts from these relations.
            values: split of the values.
        """
        if among is not None:
            relations = list(among)
        elif difficulty.families:
            relations = self._one_of_each(rng, self.relations[: difficulty.relations])
        else:
            relations = self.singles if difficulty.singles else self.relations[: difficulty.relations]
        if difficulty.numbers:
            relations = [*self.numbers, *rng.sample(relations, min(len(relations), len(self.numbers)))]
        if difficulty.relatives and self.relatives:
            relations = self._with_relatives(rng, relations)
        if facts is None and difficulty.nothing and rng.random() < difficulty.nothing:
            facts, difficulty = 0, replace(difficulty, unknown=1.0, noted=0.0)
        count = facts if facts is not None else rng.randint(1, difficulty.facts)
        told = self._facts(rng, relations, count, difficulty, split, values or split)
        history, corrected, untrue = self._history(rng, told, difficulty, split, values or split)
        questions = [
            self.phrasing.asked(rng, fact, "corrected" if fact in corrected else fact.kind, difficulty, split)
            for fact in told
        ]
        questions += self._further(rng, relations, told, untrue, history, difficulty, split)
        breaks: tuple[int, ...] = ()
        if difficulty.sessions and len(history) > 1 and rng.random() < difficulty.sessions:
            breaks = (rng.randint(1, len(history) - 1),)
        chat = [self._said_back(rng, turn, [*told, *untrue]) for turn in history] if difficulty.one_chat else []
        return Episode(tuple(history), tuple(windows(rng, questions, difficulty, self.small_talk, chat)), breaks=breaks)

    def _one_of_each(self, rng: random.Random, relations: list[Relation]) -> list[Relation]:
        """The relations and those of the families, one of each id: the same thing is told in one episode once."""
        offered = [*relations, *self.families]
        rng.shuffle(offered)
        return list({relation.id: relation for relation in offered}.values())

    def _with_relatives(self, rng: random.Random, relations: list[Relation]) -> list[Relation]:
        """Some of what is told of people close to one, what says the same of oneself, and as many others."""
        of = grouped((relation.way, relation) for relation in self.relatives)
        some: dict[str, Relation] = {}
        for way in rng.sample(sorted(of), min(len(of), _WAYS)):
            close = rng.sample(of[way], min(len(of[way]), _OF_A_WAY))
            if rng.random() < _FRIENDS:
                close += [relation for relation in of[way] if relation.named]
            some |= {r.id: r for r in (*close, *(r for r in relations if r.id == way))}
        others = [relation for relation in relations if relation.id not in some]
        return [*some.values(), *rng.sample(others, min(len(others), len(some)))]

    # What is told

    def _facts(
        self,
        rng: random.Random,
        relations: list[Relation],
        count: int,
        difficulty: Difficulty,
        split: Split,
        values: Split,
    ) -> list[Fact]:
        told: list[Fact] = []
        taken: set[str] = set()
        for relation in rng.sample(relations, count):
            value = self.values.told_of(rng, relation, difficulty, values, taken)
            taken.add(value)
            # Nobody says "My son is Tom and Anna.": what follows such an "and" is another sentence.
            if rng.random() < difficulty.lists and relation.kind == "word":
                second = self.values.any(rng, relation.kind, difficulty, values, taken)
                taken.add(second)
                told.append(Fact(relation, f"{value} and {second}", is_list=True))
                continue
            owner = None
            if relation.possessed and rng.random() < self._share_of_others(relation, difficulty):
                owner = self.anybody(rng, split)
                if rng.random() < 0.5 and len(told) + 1 < count:
                    # The user has one as well: the two must be kept apart.
                    mine = self.values.any(rng, relation.kind, difficulty, values, taken)
                    taken.add(mine)
                    told.append(Fact(relation, mine))
            told.append(Fact(relation, value, owner))
        return told[:count]

    def _share_of_others(self, relation: Relation, difficulty: Difficulty) -> float:
        return _BY_NAME if relation.named and difficulty.others else difficulty.others

    def _history(
        self, rng: random.Random, told: list[Fact], difficulty: Difficulty, split: Split, values: Split
    ) -> tuple[list[Turn], list[Fact], list[Fact]]:
        """Turns, those of the facts that are told as corrections, and what was told of them before."""
        corrected = [fact for fact in told if rng.random() < difficulty.corrections]
        taken = {fact.value for fact in told}
        before: list[Fact] = []
        for fact in corrected:
            old = self.values.any(rng, fact.relation.kind, difficulty, values, taken)
            taken.add(old)
            before.append(Fact(fact.relation, old, fact.owner))
        first = [fact for fact in told if fact not in corrected] + before
        rng.shuffle(first)
        groups = _groups(rng, first, difficulty.together)
        history = [self.phrasing.statement(rng, group, split, joined=difficulty.joined) for group in groups]
        for fact, untrue in zip(corrected, before, strict=True):
            at = next(i for i, turn in enumerate(history) if untrue.value in turn.user)
            lead = rng.choice(self.phrasing.corrections)
            history.insert(rng.randint(at + 1, len(history)), self.phrasing.statement(rng, [fact], split, lead))
        if told and rng.random() < difficulty.asked_before:
            fact = rng.choice(told)
            history.append(Turn(self.phrasing.question(rng, fact, split), fact.answer))
        for _ in range(rng.randint(0, difficulty.small_talk) if difficulty.small_talk else 0):
            mentioning = difficulty.mentions and rng.random() < difficulty.mentions
            turn = self.mention(rng, taken) if mentioning else rng.choice(self.talk(split))
            history.insert(rng.randint(0, len(history)), turn)
        return history, corrected, before

    def mention(self, rng: random.Random, taken: Collection[str] = ()) -> Turn:
        """Small talk, of the training split, with a word in it that is what one would expect of a value.

        Args:
            rng: decides everything.
            taken: values that are told, and so not mentioned.
        """
        said = {word for value in taken for word in value.split()}
        sort, turn = rng.choice(self._mentions)
        words = self.values.of_sort(sort) or self.values.single(rng.choice(("name", "word")), "train")
        word = rng.choice([w for w in words if w not in said] or ["something"])
        return Turn(turn.user.replace("{v}", word), turn.reply.replace("{v}", word))

    def told(self, rng: random.Random, relation: Relation) -> tuple[Fact, str]:
        """A fact of the training split, and a statement of it."""
        fact = Fact(relation, rng.choice(self.values.single(relation.kind, "train")))
        return fact, fact.phrase(rng, relation.statements, "train").format(v=fact.value)

    # What is asked

    def question(self, rng: random.Random, relation: Relation) -> str:
        """One way to ask the user's own fact of a relation, of the training split."""
        return self.phrasing.question(rng, Fact(relation, ""), "train")

    def anybody(self, rng: random.Random, split: Split) -> str:
        """A name; in training half of the time any capitalised word, as whatever name was asked about is to be said."""
        people = self._people[split]
        if split == "heldout" or rng.random() < 0.5:
            return rng.choice(people)
        name = rng.choice(self.values.single("name", "train"))
        return rng.choice(people) if name in self._people["heldout"] else name

    def _further(
        self,
        rng: random.Random,
        relations: list[Relation],
        told: list[Fact],
        untrue: list[Fact],
        history: list[Turn],
        difficulty: Difficulty,
        split: Split,
    ) -> list[Question]:
        """Questions about what was never told, and statements whose reply is asked for."""
        more = []
        if rng.random() < difficulty.unknown:
            new = [r for r in relations if all(r is not fact.relation for fact in told)]
            absent = Fact(rng.choice(new or relations), "")
            if difficulty.others and absent.relation.possessed and rng.random() < 0.2:
                absent = Fact(absent.relation, "", self.anybody(rng, split))
            if new:
                more.append(self.phrasing.asked(rng, absent, "unknown", difficulty, split))
        # What was corrected later is no longer there to be said.
        telling = [turn for turn in history if not any(fact.value in turn.user for fact in untrue)]
        telling = [turn for turn in telling if any(fact.value in turn.user for fact in told)]
        if telling and rng.random() < difficulty.noted:
            turn = rng.choice(telling)
            said = [fact for fact in told if fact.value in turn.user]
            said.sort(key=lambda fact: turn.user.index(fact.value))
            answer = self.phrasing.noted(said)
            value, *also = (fact.value for fact in said)
            about = said[0].relation.id
            owner = said[0].owner or ""
            more.append(Question(turn.user, answer, value, about, kind="noted", also=tuple(also), owner=owner))
        return more

    def _said_back(self, rng: random.Random, turn: Turn, facts: Sequence[Fact]) -> Turn:
        """A turn with the reply that a chat would mostly have given."""
        said = sorted((f for f in facts if f.value in turn.user), key=lambda f: turn.user.index(f.value))
        return Turn(turn.user, self.phrasing.noted(said)) if said and rng.random() < _SAID_BACK else turn

    # The backbone's own words

    def learn_replies(self, reply: Callable[[list[str]], list[str]], rng: random.Random) -> list[Question]:
        """Ask the backbone for its own replies, to use them in histories from here on.

        Args:
            reply: gives replies to prompts.

        Returns:
            Ordinary prompts with the replies to them, which memory is to leave alone.
        """
        mentions = [self.mention(rng).user for _ in self._mentions]
        prompts = self.ordinary["train"] + [turn.user for turn in self.small_talk] + mentions
        told = [self.told(rng, relation) for relation in self.relations]
        said = reply(prompts + [statement for _, statement in told])
        ordinary = [Question(p, r, kind="ordinary") for p, r in zip(prompts, said, strict=False) if r]
        for (fact, _), words in zip(told, said[len(prompts) :], strict=True):
            if words:
                self.phrasing.replies.setdefault(fact.relation.id, []).append(words.replace(fact.value, "{v}"))
        self.small_talk = self.small_talk + [Turn(q.text, q.answer) for q in ordinary]
        return ordinary


def _groups(rng: random.Random, facts: list[Any], together: float) -> list[list[Any]]:
    """Facts spread over messages: mostly one a message, sometimes several."""
    groups: list[list[Any]] = []
    for fact in facts:
        if groups and rng.random() < together:
            groups[-1].append(fact)
        else:
            groups.append([fact])
    return groups
