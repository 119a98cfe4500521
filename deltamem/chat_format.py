"""From messages to token ids, by the model's own chat template, with text that can forge nothing.

The template is rendered once around placeholders and cut at them. What is between the placeholders belongs to the
template and may hold control tokens; what a person or a file says is tokenized apart, with control tokens taken
as plain text, so `<|im_end|>` in a message cannot end it.

A conversation is then   opening, text, answer, text, next, text, answer, ...   where `opening` is the system
prompt and the first user header, `answer` ends a user's message and begins a reply, and `next` ends a reply and
begins the next user's message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltamem.errors import BackboneError

_SLOTS = tuple(f"\ue000slot{i}\ue001" for i in range(4))


@dataclass(frozen=True)
class ChatFormat:
    """The fixed parts of a conversation, as token ids.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        opening: system prompt and first user header.
        answer: end of a user's message and the generation prompt.
        following: end of a reply and the next user header.
        stops: token ids that end a reply.
    """

    tokenizer: Any
    opening: list[int]
    answer: list[int]
    following: list[int]
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, system: str | None = None, stops: frozenset[int] = frozenset()) -> ChatFormat:
        """Read a tokenizer's template.

        Args:
            tokenizer: a Hugging Face tokenizer with a chat template.
            system: the system prompt; None leaves it to the template.
            stops: further token ids that end a reply, e.g. from the generation config.

        Raises:
            BackboneError: there is no template, or it has no place for a system prompt.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise BackboneError("this model has no chat template; use an instruction-tuned model")
        messages = [{"role": "system", "content": _SLOTS[0]}] if system is not None else []
        messages += [
            {"role": "user", "content": _SLOTS[1]},
            {"role": "assistant", "content": _SLOTS[2]},
            {"role": "user", "content": _SLOTS[3]},
        ]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            head, rest = text.split(_SLOTS[1])
            _, rest = rest.split(_SLOTS[2])
            following, answer = rest.split(_SLOTS[3])
            lead, tail = head.split(_SLOTS[0]) if system is not None else (head, "")
        except Exception as error:  # templates raise whatever they like
            part = "a system prompt" if system is not None else "a plain conversation"
            raise BackboneError(f"this model's chat template has no place for {part} ({error})") from None
        opening = _control(tokenizer, lead)
        if system is not None:
            opening += encode_text(tokenizer, system) + _control(tokenizer, tail)
        eos = tokenizer.eos_token_id
        return cls(
            tokenizer=tokenizer,
            opening=opening,
            answer=_control(tokenizer, answer),
            following=_control(tokenizer, following),
            stops=stops | (frozenset([eos]) if eos is not None else frozenset()),
        )

    def text(self, content: str) -> list[int]:
        """Token ids of what somebody said."""
        return encode_text(self.tokenizer, content)


def encode_text(tokenizer: Any, content: str) -> list[int]:
    """Tokenize text so that nothing in it becomes a control token. Lone surrogates become replacement marks."""
    clean = content.encode("utf-8", "replace").decode("utf-8")
    ids: list[int] = tokenizer(clean, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _control(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
