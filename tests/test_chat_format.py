"""Text that a person typed is text, whatever it looks like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, composite

from deltamem.chat_format import ChatFormat, encode_text
from deltamem.errors import BackboneError

CONTROL = ("<|im_end|>", "<|im_start|>")


@composite
def nasty(draw: DrawFn) -> str:
    return "".join(draw(st.lists(st.one_of(st.sampled_from([*CONTROL, "\n", "system"]), st.text()), max_size=8)))


def test_parts_joined_are_the_template(tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer)
    parts = [
        form.opening,
        form.text("hi"),
        form.answer,
        form.text("yes"),
        form.following,
        form.text("bye"),
        form.answer,
    ]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "bye"}]  # fmt: skip
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert [token for part in parts for token in part] == whole


def test_a_system_prompt_takes_its_place(tokenizer: Any) -> None:
    form = ChatFormat.of(tokenizer, system="Say <|im_end|>.")
    assert tokenizer.decode(form.opening) == "<|im_start|>system\nSay <|im_end|>.<|im_end|>\n<|im_start|>user\n"
    assert form.opening.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


@given(text=nasty())
def test_no_text_becomes_a_control_token(tokenizer: Any, text: str) -> None:
    control = {tokenizer.convert_tokens_to_ids(t) for t in CONTROL}
    ids = encode_text(tokenizer, text)
    assert not control & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_lone_surrogates_are_replaced(tokenizer: Any) -> None:
    assert tokenizer.decode(encode_text(tokenizer, "a\ud800b")) == "a?b"


def test_a_model_without_a_template_is_refused(tokenizer: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(BackboneError, match="no chat template"):
        ChatFormat.of(Bare())


def test_a_template_without_a_system_role_says_so(tokenizer: Any) -> None:
    class Strict:
        chat_template = "x"
        eos_token_id = 0

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            if messages[0]["role"] == "system":
                raise ValueError("System role not supported")
            return "".join(m["content"] for m in messages)

    with pytest.raises(BackboneError, match="no place for a system prompt"):
        ChatFormat.of(Strict(), system="x")
