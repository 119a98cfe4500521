"""Which tokens read: all of them, or those of replies alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from deltamem.errors import StateError
from tests.conftest import make_memory, make_model


def test_an_adapter_that_reads_in_replies_alone_leaves_the_rest_as_it_is(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model, reads="reply")
    tokens = ids(2, 9)
    with torch.no_grad():
        with memory.disabled():
            frozen = model(input_ids=tokens).logits
        memory.reset(2)
        with memory.writing(reads=torch.zeros(2, 9, dtype=torch.bool)):
            assert torch.equal(model(input_ids=tokens).logits, frozen), "written, and nothing read"
        state = memory.state.clone()
        assert state.norms().min() > 0
        reads = torch.zeros(2, 9, dtype=torch.bool)
        reads[:, 6:] = True
        with memory.reading(reads=reads):
            bent = model(input_ids=tokens).logits
        assert torch.equal(bent[:, :6], frozen[:, :6]) and (bent[:, 6:] != frozen[:, 6:]).any(-1).all()
        with memory.reading():
            everywhere = model(input_ids=tokens).logits
        assert (everywhere[:, :6] != frozen[:, :6]).any(), "a call that says nothing of replies reads throughout"
    with pytest.raises(StateError, match="reads is"), memory.reading(reads=reads[:, 1:]):
        model(input_ids=tokens)


def test_other_adapters_read_at_every_token(ids: Callable[..., torch.Tensor]) -> None:
    model = make_model()
    memory = make_memory(model)
    with torch.no_grad():
        memory.reset(1)
        with memory.writing():
            model(input_ids=ids(1, 9))
        with memory.reading():
            expected = model(input_ids=ids(1, 9, 1)).logits
        with memory.reading(reads=torch.zeros(1, 9, dtype=torch.bool)):
            assert torch.equal(model(input_ids=ids(1, 9, 1)).logits, expected)
