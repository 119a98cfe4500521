"""Episodes: who is told what, and how it is laid out as tensors."""

from __future__ import annotations

import json
import random
import re
from importlib.resources import files
from typing import Any

import pytest

from deltamem.chat_format import ChatFormat
from deltamem.episodes import many
from deltamem.episodes.batches import ask_tokens, read_batch, text_batch, write_batch
from deltamem.episodes.difficulty import Difficulty
from deltamem.episodes.episode import Episode, Question, Turn
from deltamem.episodes.impersonal import about_numbers, impersonal
from deltamem.episodes.many import make_episodes
from deltamem.episodes.numbers import numbers
from deltamem.episodes.openings import openings
from deltamem.episodes.sentences import in_one_sentence
from deltamem.episodes.synthetic import SyntheticPeople
from deltamem.episodes.words import Split
from deltamem.errors import DataError
from deltamem.evaluation.scoring import says_unknown
from deltamem.training.curriculum import STAGES
from deltamem.training.places.builder import difficulty

SPLITS: tuple[Split, ...] = ("train", "heldout")


def test_values_and_phrasings_are_split(people: SyntheticPeople) -> None:
    for kind in ("name", "word"):
        train, heldout = (set(people.values.single(kind, s)) for s in ("train", "heldout"))  # type: ignore[arg-type]
        assert train and heldout and not train & heldout
    assert len({r.id for r in people.relations}) == len(people.relations) >= 40
    for relation in people.relations:
        assert len(set(relation.statements)) >= 4 and len(set(relation.questions)) >= 4
        assert all("{v}" in s for s in (*relation.statements, relation.answer))


def test_a_tokenizer_without_words_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="too few words"):
        SyntheticPeople(tokenizer)


def test_episodes_are_a_function_of_the_seed(people: SyntheticPeople) -> None:
    hard = STAGES[-1]
    one, two = (people.episode(random.Random(5), hard, "train") for _ in range(2))
    assert one == two != people.episode(random.Random(6), hard, "train")
    told = " ".join(t.user for t in one.history)
    for question in (q for window in one.questions for q in (*window.earlier, window)):
        if question.kind in ("recall", "corrected", "other"):
            assert question.value and question.value in told and question.value in question.answer


def test_a_history_is_laid_out_as_a_chat(tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    question = Question("What is it?", "It is Rex.", "Rex")
    episode = Episode((Turn("My dog is Rex.", "Ok."), Turn("Hm", "Yes")), (question,))
    batch = write_batch(form, [episode, Episode((Turn("a", "b"),), (question,))])
    text = tokenizer.decode(batch.ids[0][batch.valid[0]].tolist())
    assert text == (
        "My dog is Rex.<|im_end|>\n<|im_start|>assistant\nOk.<|im_end|>\n<|im_start|>user\n"
        "Hm<|im_end|>\n<|im_start|>assistant\nYes"
    )
    assert tokenizer.decode(batch.ids[0][batch.written[0]].tolist()) == "My dog is Rex.Ok.HmYes"
    assert tokenizer.decode(batch.ids[0][batch.values[0] == 1].tolist()) == " Rex"
    assert batch.segments[0].max() == 3 and not batch.written[1][~batch.valid[1]].any()

    read = read_batch(form, [(0, question), (1, Question("Why so long a question?", "Yes."))])
    kept = read.targets[0] != -100
    assert tokenizer.decode(read.targets[0][kept].tolist()) == "It is Rex.<|im_end|>"
    assert tokenizer.decode(read.targets[0][read.values[0] > 0].tolist()) == " Rex"
    assert (read.values[1] > 0).sum() == len("Yes.")


def test_earlier_questions_stand_in_the_window_and_are_learnt_too(tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    first, talk = Question("Cat?", "It is Tom.", "Tom"), Question("Hm", "Yes", kind="ordinary")
    question = Question("Dog?", "It is Rex.", "Rex", earlier=(talk, first))
    read = read_batch(form, [(0, question), (0, first)])
    text = (
        "Hm<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\n"
        "Cat?<|im_end|>\n<|im_start|>assistant\nIt is Tom.<|im_end|>\n<|im_start|>user\n"
        "Dog?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ask_tokens(form, question)) == text
    assert tokenizer.decode(read.ids[0][read.valid[0]].tolist()) == text + "It is Rex."
    kept = read.targets[0] != -100
    assert tokenizer.decode(read.targets[0][kept].tolist()) == "It is Tom.<|im_end|>It is Rex.<|im_end|>"
    assert tokenizer.decode(read.targets[0][read.values[0] > 0].tolist()) == " Tom Rex"
    # Each target is the token that follows the position it is expected at.
    for row in range(2):
        ids = read.ids[row][-read.targets.shape[1] :].tolist()
        for at, target in enumerate(read.targets[row].tolist()[:-1]):
            assert target in (-100, ids[at + 1])


def everything(people: SyntheticPeople, difficulty: Difficulty, count: int = 40, **options: Any) -> list[Episode]:
    rng = random.Random(1)
    return [people.episode(rng, difficulty, "heldout", **options) for _ in range(count)]


def test_a_correction_comes_after_what_it_corrects_and_wins(people: SyntheticPeople) -> None:
    for episode in everything(people, Difficulty(corrections=1.0), facts=2):
        told = [t.user for t in episode.history]
        assert len(told) >= 3
        for question in episode.questions:
            assert question.kind == "corrected" and question.value
            new = max(i for i, said in enumerate(told) if question.value in said)
            assert new > 0 and question.value in question.answer


def test_other_people_have_their_own_things(people: SyntheticPeople) -> None:
    kinds = set()
    for episode in everything(people, Difficulty(others=1.0), facts=4):
        told = " ".join(t.user for t in episode.history)
        for question in episode.questions:
            kinds.add(question.kind)
            if question.kind == "other":
                owner = question.answer.split("'s")[0]
                assert f"{owner}'s" in question.text and f"{owner}'s" in told
    assert kinds == {"other", "recall"}


def test_what_was_never_told_is_asked_about(people: SyntheticPeople) -> None:
    for episode in everything(people, Difficulty(unknown=1.0), facts=3):
        (unknown,) = [q for q in episode.questions if q.kind == "unknown"]
        before, pause, rest = unknown.answer.partition(unknown.value or "?")
        assert pause == "..." and rest.strip() == people.phrasing.unknown
        (relation,) = (r for r in people.relations if r.id == unknown.topic)
        assert relation.answer.startswith(before) and says_unknown(unknown.answer)
        assert unknown.topic not in {q.topic for q in episode.questions if q is not unknown}


def test_an_answer_in_other_words_is_learnt_from_its_value_on(people: SyntheticPeople, tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    asked = [
        q
        for e in everything(people, Difficulty(reworded=1.0, unknown=1.0, others=0.3), 30, facts=3)
        for q in e.questions
    ]
    relations = {r.id: r for r in people.relations}
    assert {q.kind for q in asked} == {"recall", "other", "unknown"}
    for q in asked:
        relation = relations[q.topic]
        assert q.given and q.value and q.answer.startswith(q.given)
        assert relation.answer not in relation.other_answers
        assert not any("{v}" in a[:4] or re.search(r"\b(I|my|we)\b", a) for a in relation.other_answers), relation.id
        batch = read_batch(form, [(0, q)])
        expected = tokenizer.decode(batch.targets[batch.targets != -100].tolist())
        assert expected == q.answer[len(q.given) :] + "<|im_end|>"
    dog = relations["dog"]
    assert "You named your dog {v}." in dog.other_answers and "Your dog's name is {v}." in dog.other_answers
    heldout = [q for e in everything(people, Difficulty(), 30, facts=3) for q in e.questions]
    assert not any(q.given for q in heldout)


def test_a_reply_to_a_statement_says_what_was_understood(people: SyntheticPeople) -> None:
    for episode in everything(people, Difficulty(noted=1.0), facts=2):
        (noted,) = [q for q in episode.questions if q.kind == "noted"]
        assert noted.text in {t.user for t in episode.history} and noted.answer.startswith("Got it.")
        said = [q.value for q in episode.questions if q is not noted and q.value and q.value in noted.text]
        assert said and all(value in noted.answer for value in said)
        assert sorted((noted.value, *noted.also)) == sorted(said)


def test_a_reply_to_a_statement_says_back_all_that_is_still_true_in_its_order(people: SyntheticPeople) -> None:
    several = 0
    for episode in everything(people, Difficulty(noted=1.0, together=1.0, corrections=0.4), 60, facts=3):
        told = [q for q in episode.questions if q.kind != "noted"]
        for noted in (q for q in episode.questions if q.kind == "noted"):
            said = [q.value for q in told if q.value and q.value in noted.text]
            # As many sentences as things told: nothing that was corrected later is among them.
            assert len(said) == noted.answer.count(".") - 1
            order = sorted(said, key=noted.text.index)
            assert order == sorted(said, key=noted.answer.index)
            several += len(said) > 1
    assert several > 5


def test_several_things_are_told_in_one_sentence(people: SyntheticPeople) -> None:
    joined = everything(people, Difficulty(together=1.0, joined=1.0), 60, facts=2)
    texts = [episode.history[0].user for episode in joined]
    one = [text for text in texts if text.count(".") == 1 and " and " in text]
    assert len(one) > 40
    for episode in joined:
        said = [q.value or "" for q in episode.questions]
        assert all(value in episode.history[0].user for value in said)
    alone = everything(people, Difficulty(together=1.0), 60, facts=2)
    assert not any(text.count(".") == 1 for e in alone for text in [e.history[0].user.rstrip("!")])


@pytest.mark.parametrize(
    ("first", "second", "name", "one"),
    [
        ("My cat is called Misty.", "I work as a nurse.", False, "My cat is called Misty and I work as a nurse."),
        ("I live in Rome.", "My boss is Tom.", False, "I live in Rome and my boss is Tom."),
        ("I live in Rome.", "Tom is my boss.", True, "I live in Rome and Tom is my boss."),
        ("I live in Rome.", "I'm Tom.", False, "I live in Rome and I'm Tom."),
        ("I live in Rome.", "In May I turn ten.", False, "I live in Rome and in May I turn ten."),
        ("Do you know Rome?", "I'm Tom.", False, None),
        ("I live in Rome.", "I have a dog. It is called Rex.", False, None),
    ],
)
def test_two_sentences_become_one(first: str, second: str, name: bool, one: str | None) -> None:
    assert in_one_sentence(first, second, name) == one


def test_lists_and_long_values(people: SyntheticPeople) -> None:
    asked = [q for e in everything(people, Difficulty(lists=1.0)) for q in e.questions if q.value]
    kinds = {r.id: r.kind for r in (*people.relations, *people.singles, *people.families, *people.heldout_relations)}
    assert all((" and " in str(q.value)) == (kinds[q.topic] == "word") for q in asked), "names are not told two at once"
    assert {kinds[q.topic] for q in asked} == {"name", "word"}
    words = {q.value for e in everything(people, Difficulty(long_values=1.0), 80) for q in e.questions if q.value}
    assert {len(w.split()) for w in words} == {1, 2} and len(words) > 40


def test_other_processes_make_the_same_episodes(people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "_TOGETHER", 5)
    shares: list[float] = []
    here, there = (
        make_episodes(people, 12, "some", "train", difficulty, workers=n, report=shares.append) for n in (0, 2)
    )
    assert here == there and len(here) == 12
    assert shares == [5 / 12, 10 / 12, 1.0] * 2
    assert here[0] != here[5], "no lot is another's"
    alone = make_episodes(people, 3, "some", "train", difficulty, facts=2)
    assert all(len({q.value for q in e.asked if q.kind != "unknown"}) <= 3 for e in alone)


def test_whose_a_thing_is_may_be_any_name_in_training_and_held_out_people_keep_theirs(people: SyntheticPeople) -> None:
    others = Difficulty(others=1.0)
    known, heldout = (set(people._people[s]) for s in ("train", "heldout"))
    for split in SPLITS:
        rng = random.Random(1)
        made = [people.episode(rng, others, split, facts=2) for _ in range(60)]
        heads = {q.answer.split("'s ")[0].split()[-1] for e in made for q in e.questions if q.kind == "other"}
        if split == "train":
            assert heads & known and heads - known and not heads & heldout
        else:
            assert heads <= heldout


def test_some_relations_are_never_trained_on(people: SyntheticPeople) -> None:
    kept = {r.id for r in people.heldout_relations}
    assert len(people.relations) >= 60 and len(kept) >= 10 and not kept & {r.id for r in people.relations}
    assert {
        q.topic for e in everything(people, Difficulty(), facts=3, among=people.heldout_relations) for q in e.questions
    } <= kept
    assert not set(people.ordinary["train"]) & set(people.ordinary["heldout"])
    assert not {t.user for t in people.talk("train")} & {t.user for t in people.talk("heldout")}


def test_impersonal_questions_of_held_out_people_are_never_trained_on(people: SyntheticPeople) -> None:
    trained, asked = (impersonal(random.Random(0), split, 99) for split in ("train", "heldout"))
    assert not {q.text for q in trained} & {q.text for q in asked}
    texts = [q.text for q in (*trained, *asked)]
    assert len(set(texts)) == len(texts) > 5000 and not [t for t in texts if "{" in t or " a owl" in t]
    about = {r.id: r.questions for r in people.families}
    assert {q.relation for q in trained} == {"", *about}
    assert not [q for q in trained if q.text in about.get(q.relation, ())]
    (one,) = {q.text for q in impersonal(random.Random(0), "heldout", 99) if q.relation == "owl" and "old" in q.text}
    assert one == "How old can an owl get?"
    few = impersonal(random.Random(1), "train", 2)
    assert len(few) < len(trained) and few == impersonal(random.Random(1), "train", 2)


def test_what_has_numbers_in_it_and_is_nobodys_own_is_held_out_too() -> None:
    trained, asked = (about_numbers(random.Random(0), split, 3) for split in ("train", "heldout"))
    assert not set(trained) & set(asked) and len(set(trained)) == len(trained) > 300 and len(asked) > 200
    assert not [text for text in (*trained, *asked) if "{" in text or " a exam" in text]
    assert any("heart rate" in text for text in trained) and any(c.isdigit() for text in trained for c in text)
    assert trained == about_numbers(random.Random(0), "train", 3) != about_numbers(random.Random(1), "train", 3)


def test_text_is_read_at_all_of_its_tokens() -> None:
    batch = text_batch([[5, 6, 7], [8, 9]])
    assert batch.ids.tolist() == [[5, 6, 7], [0, 8, 9]]
    assert batch.targets.tolist() == [[6, 7, -100], [-100, 9, -100]]
    assert batch.valid.tolist() == batch.reads.tolist() == [[True] * 3, [False, True, True]]
    assert not batch.values.any() and not batch.starts.any()


def test_unusual_ways_to_tell_and_to_ask_are_never_trained_on(people: SyntheticPeople) -> None:
    made = openings(people, random.Random(0))
    for what, fewest in (("questions", 140), ("statements", 110)):
        unusual = people.unusual[what]
        ways = {getattr(r, what)[0] for r in unusual}
        assert len(ways) == len(unusual) >= fewest
        known = {w for r in (*people.relations, *people.singles, *people.families) for w in getattr(r, what)}
        assert not ways & known
        begun = {way.partition("{v}")[0] for way in ways}
        assert not any(way in q.text for way in begun if len(way) > 12 for q in made)
        for episode in everything(people, Difficulty(), facts=1, among=unusual):
            said = {q.text for q in episode.questions} if what == "questions" else {episode.history[0].user}
            assert any(text.startswith(way) for text in said for way in begun)


def test_more_words_and_relations_keep_off_what_is_held_out(people: SyntheticPeople) -> None:
    kept = {p for r in people.relations for p in (r.statements[-1], r.questions[-1])}
    kept |= {p for r in people.heldout_relations for p in (*r.statements, *r.questions)}
    offered = [r for r in (*people.singles, *people.families) if r not in people.relations]
    assert len(people.singles) > 100 and len(offered) > 300
    for relation in offered:
        assert not kept & {*relation.statements[:-1], *relation.questions[:-1]}, relation.id
        assert all(s.count("{v}") == 1 for s in (*relation.statements, relation.answer))
    assert not {r.id for r in people.heldout_relations} & {r.id for r in offered}
    told = {q.topic for e in everything(people, Difficulty(singles=True), facts=4) for q in e.questions}
    assert told <= {r.id for r in people.singles} and not told <= {r.id for r in people.relations}


def test_some_values_are_what_one_would_expect(people: SyntheticPeople) -> None:
    known = {r.id for r in (*people.relations, *people.singles, *people.families)} | {r.way for r in people.relatives}
    data = json.loads((files("deltamem.episodes") / "data" / "values.json").read_text("utf-8"))
    sorts = {of: set(sort["values"]) for sort in data.values() for of in sort["of"]}
    assert set(sorts) <= known, "each is a relation's"
    assert sum(len(sort["of"]) for sort in data.values()) == len(sorts), "no relation is of two sorts"
    asked = [q for e in everything(people, Difficulty(natural=1.0), facts=4) for q in e.questions]
    fitting = [q.value in sorts[q.topic] for q in asked if q.topic in sorts]
    assert sum(fitting) > 0.9 * len(fitting) > 40  # a pool may run out within an episode
    plain = [q for e in everything(people, Difficulty(), facts=4) for q in e.questions if q.topic in sorts]
    assert not any(q.value in sorts[q.topic] for q in plain)


def test_values_that_fit_are_split_and_mentioned_in_small_talk(people: SyntheticPeople) -> None:
    data = json.loads((files("deltamem.episodes") / "data" / "values.json").read_text("utf-8"))
    for split in ("train", "heldout"):
        difficulty = Difficulty(natural=1.0, small_talk=6, mentions=1.0)
        episodes = [people.episode(random.Random(n), difficulty, split, facts=4) for n in range(60)]  # type: ignore[arg-type]
        for sort in data.values():
            last = len(sort["values"]) * 4 // 5
            other = set(sort["values"][last:] if split == "train" else sort["values"][:last])
            own = [q.value for e in episodes for q in e.questions if q.topic in sort["of"]]
            assert other and not other & set(own)
    talk = [people.mention(random.Random(n), ["Rome", "Emma"]) for n in range(400)]
    assert not any("{v}" in turn.user + turn.reply for turn in talk)
    assert any("Berlin" in t.user for t in talk) and not any(
        w in t.user.split() for t in talk for w in ("Rome", "Emma")
    )
    mentioned = {n for t in talk for n in re.findall(r"\d+:\d\d|\d+", t.user)}
    assert len(mentioned) > 20, "numbers that tell nothing as well"
    assert not mentioned & {n for kind in ("time", "few") for n in numbers()[kind]["heldout"]}
    untold = set(data["places"]["values"][-4:])
    assert not any(set(re.findall(r"\w+", t.user)) & untold for t in talk)


def test_facts_are_told_together_as_often_as_is_asked(people: SyntheticPeople) -> None:
    alone, one = (everything(people, Difficulty(together=share), facts=3) for share in (0.0, 1.0))
    assert {len(e.history) for e in alone} == {3} and {len(e.history) for e in one} == {1}


def test_a_value_that_stands_within_a_longer_one_is_not_told_there(tokenizer: Any) -> None:
    asked = (Question("My cat?", "Rex Tom.", "Rex Tom"), Question("My dog?", "Tom.", "Tom"))
    episode = Episode((Turn("My cat is Rex Tom, my dog is Tom.", "Ok."),), asked)
    batch = write_batch(ChatFormat.of(tokenizer), [episode])
    assert [tokenizer.decode(batch.ids[batch.values == n].tolist()) for n in (1, 2)] == [" Rex Tom", " Tom"]


def test_replies_and_the_token_before_them_are_marked_as_reading(tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    episode = Episode((Turn("hello", "hi you"), Turn("more", "ok")), (Question("who?", "me", "me"),))
    history = write_batch(form, [episode])
    said = [tokenizer.decode([i]) for i in history.ids[0][history.reads[0]].tolist()]
    before = tokenizer.decode(form.answer[-1:])
    assert said == [before, *"hi you", before, *"ok"]
    earlier = Question("what?", "that", earlier=(Question("who?", "me"),))
    asked = read_batch(form, [(0, earlier), (0, episode.questions[0])])
    assert [
        "".join(tokenizer.decode([i]) for i in row[reads].tolist())
        for row, reads in zip(asked.ids, asked.reads, strict=True)
    ] == [
        f"{before}me{before}that",
        f"{before}me",
    ]


def test_now_and_then_nothing_is_told(people: SyntheticPeople) -> None:
    rng = random.Random(1)
    episodes = [people.episode(rng, Difficulty(facts=3, nothing=0.5, noted=0.5), "train") for _ in range(40)]
    empty = [e for e in episodes if all(q.kind == "unknown" for q in e.asked)]
    assert 10 < len(empty) < 30 and all(not e.history and len(e.asked) == 1 for e in empty)
