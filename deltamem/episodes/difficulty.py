"""How hard the generator's episodes are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """How hard an episode is.

    Attributes:
        pool: how many values per kind are in play.
        facts: the most facts in one history.
        relations: how many relations are in play.
        small_talk: the most turns of small talk among the facts.
        long_values: share of values of several tokens: two words, or one that is made up or, in training, put together
            from pieces of the vocabulary.
        asked_before: share of histories in which one fact was asked about and answered already.
        corrections: share of facts that were told with another value before.
        unknown: share of episodes in which something never told is asked about as well.
        nothing: share of episodes in which no fact is told at all, and something is asked about.
        noted: share of episodes in which the reply to a statement is asked for as well.
        reworded: share of questions whose answer begins in other words than the expected ones, which are not learnt:
            a reply that went its own way is to find the value all the same.
        earlier: share of windows in which something else was said before the question.
        one_chat: share of windows in which what was told stands before the question as well, each message with a reply
            that says it back, as in a chat that has not ended.
        others: share of facts that are about somebody else.
        lists: share of values that are two things, of those that are no names.
        sessions: share of histories that are told in two sessions.
        families: relations made from nouns and phrasings that go with all of them are in play as well.
        singles: relations that are no family's are in play instead, told and asked for in more words.
        numbers: relations whose values are numbers are in play as well, half of them.
        relatives: relations of people close to one ("My sister lives in Oslo.") are in play as well, some of them with
            what says the same of oneself.
        natural: share of values that are what one would expect of their relation, where such are known; the others are
            any words.
        longer: share of values that are words of several tokens that one would expect of their relation ("Pixie"),
            where such are known. All of them are held out.
        together: chance of each fact after the first to be told in one message with the one before.
        joined: chance of a fact that is told in one message with the one before to be told in one sentence with it.
        mentions: share of the turns of small talk that mention what could be a value, and tell nothing by it.
    """

    pool: int = 1 << 20
    facts: int = 1
    relations: int = 1 << 20
    small_talk: int = 0
    long_values: float = 0.0
    asked_before: float = 0.0
    corrections: float = 0.0
    unknown: float = 0.0
    nothing: float = 0.0
    noted: float = 0.0
    reworded: float = 0.0
    earlier: float = 0.0
    one_chat: float = 0.0
    others: float = 0.0
    lists: float = 0.0
    sessions: float = 0.0
    families: bool = False
    singles: bool = False
    numbers: bool = False
    relatives: bool = False
    natural: float = 0.0
    longer: float = 0.0
    together: float = 0.3
    joined: float = 0.0
    mentions: float = 0.0
