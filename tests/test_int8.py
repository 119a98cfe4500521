"""8-bit weights on a CPU: close to the layer they stand for, in every shape of call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.backbones import int8
from deltamem.backbones.int8 import Int8Linear, suits_this_cpu, to_int8
from tests.conftest import make_model

pytestmark = pytest.mark.skipif(not suits_this_cpu(), reason="8-bit weights are not used on this CPU")


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def hardware(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bfloat16, and one that does not."""
    monkeypatch.setattr(int8, "multiplies_bfloat16", lambda: request.param)


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 12), (1, 13), (3, 50)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_near_the_layer_it_stands_for(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        linear.weight[3] *= 100  # each row has its own scale
        linear.weight[5] = 0
    x = torch.randn(*shape, 64)
    with torch.no_grad():
        expected, found = linear(x), Int8Linear(linear)(x)
    assert found.shape == expected.shape and found.dtype == x.dtype
    # Half a step of each weight's 127 and bfloat16's 2^-9 of each number and of the sum, all in the same direction.
    bound = linear.weight.abs().amax(1) / 250 * x.abs().sum(-1, keepdim=True) + 2**-7 * (
        x.abs() @ linear.weight.abs().T
    )
    assert ((found - expected).abs() <= bound + 2**-7 * expected.abs() + 1e-6).all()


@pytest.mark.usefixtures("hardware")
def test_few_rows_and_many_give_the_same_numbers() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 48))
    x = torch.randn(20, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([layer(row[None]) for row in x]), layer(x), atol=2e-2, rtol=1e-2)


def test_widths_that_the_kernel_cannot_take_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(33, 16), nn.Linear(16, 5))
    to_int8(model)
    assert type(model[0]) is nn.Linear and isinstance(model[1], Int8Linear)
    assert model(torch.randn(2, 33)).shape == (2, 5)


def test_memory_attaches_to_it_and_trains_through_it() -> None:
    model = make_model()
    to_int8(model)
    model.requires_grad_(False)
    memory = DeltaMemory.attach(model, DeltaMemConfig(output_init="base_slice"))
    ids = torch.tensor([[1, 2, 3]])
    with memory.writing():
        model(input_ids=ids).logits.sum().backward()
    gradient = memory.adapter[0].delta_q_proj.grad
    assert gradient is not None and gradient.abs().max() > 0
    with torch.no_grad(), memory.disabled():
        assert torch.isfinite(model(input_ids=ids).logits).all()
