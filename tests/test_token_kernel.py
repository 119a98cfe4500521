"""The GPU's single token through Triton's interpreter is what the layer does."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from deltamem import DeltaMemConfig
from deltamem.key_pairs import lent, lent_width
from deltamem.layer import DeltaLayer
from tests.test_token_steps import CONFIGS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="scripts/gpu_check.py runs it on the GPU itself")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_is_what_the_layer_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config: DeltaMemConfig = CONFIGS[name]
    torch.manual_seed(0)
    layer = DeltaLayer(config, 32, dict.fromkeys("qkvo", 32))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        x = torch.randn(3, 1, 32)
        state = torch.randn(3, config.num_state_heads, config.rank, config.rank)
        valid = torch.tensor([[True], [True], [False]])
        written = torch.tensor([[True], [False], [True]])
        lend = partial(lent, first=torch.randn(3, lent_width(config)), there=None)
        found: list[list[torch.Tensor]] = []
        for uses in (False, True):
            monkeypatch.setattr("deltamem.layer.uses_kernels", lambda *_, uses=uses: uses)
            gates: list[torch.Tensor] = []
            reads, after = layer.read_and_write(x, state, valid, written, gates.append, lend)
            found.append([reads, after, gates[0] * valid[..., None, None]])
    for expected, actual in zip(*found, strict=True):
        assert expected.shape == actual.shape
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert not found[1][1][0].equal(state[0]) and found[1][1][1].equal(state[1])
