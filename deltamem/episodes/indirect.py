"""Questions put indirectly: "Do you know where I live?" for "Where do I live?"."""

from __future__ import annotations

import random
import re

_LEADS = (
    "Tell me {q}.",
    "Please tell me {q}.",
    "Now tell me {q}, please.",
    "Could you tell me {q}?",
    "Would you tell me {q}?",
    "Do you know {q}?",
    "Do you happen to know {q}?",
    "Do you still know {q}?",
    "Do you remember {q}?",
    "Do you recall {q}?",
    "Remind me {q}.",
    "Could you remind me {q}?",
    "I forgot {q}.",
    "I can't remember {q}.",
    "I would like to know {q}.",
    "I want to know {q}.",
    "I wonder {q}.",
    "Let me know {q}.",
    "Say {q}.",
    "Have I told you {q}?",
)
_ASKED = r"(?P<asked>(?:Who|Whom|What|Which|Where|When|How|In which|At which|On which|With whom)\b[^,.:]*?)"
_WHOLE = r"(?<!\b(?:in|of|on|at|to))(?<!\bfor)(?<!\b(?:from|with))(?<!\bagain)"
"""What a question is about ends so: not "my trade in", nor "my brother again"."""
_TURNED = (
    # "do" goes: "Where do I live?"
    (re.compile(rf"^{_ASKED} do (?P<who>I|we) (?P<rest>[^,.:]+)\?$"), "{asked} {who} {rest}"),
    # "Where am I moving?", "What have I lost?"
    (re.compile(rf"^{_ASKED} (?P<verb>am|have|will|was|should) I (?P<rest>[^,.:]+)\?$"), "{asked} I {verb} {rest}"),
    # "What is my dog called?"
    (
        re.compile(rf"^{_ASKED} (?P<verb>is|was) (?P<who>my [\w']+(?: \w+)?) (?P<rest>called|named)\?$"),
        "{asked} {who} {verb} {rest}",
    ),
    # "What is my dog's name?"
    (
        re.compile(
            rf"^{_ASKED} (?P<verb>is|was|are|were) (?P<who>(?:my|our) [\w' ]+|the name of my [\w ]+){_WHOLE}\?$"
        ),
        "{asked} {who} {verb}",
    ),
)


def indirect(rng: random.Random, question: str) -> str | None:
    """The question as part of another sentence; None where its words do not say how it is turned."""
    for pattern, turned in _TURNED:
        if found := pattern.match(question):
            parts = {"verb": "", "who": "I", "rest": ""} | {k: v for k, v in found.groupdict().items() if v}
            clause = turned.format(**parts)
            return rng.choice(_LEADS).format(q=clause[0].lower() + clause[1:])
    return None
