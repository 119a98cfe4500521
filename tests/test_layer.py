"""One layer against the equations, token by token, for the options that the published vectors leave open."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deltamem import DeltaMemConfig
from deltamem.layer import DeltaLayer

HIDDEN, OUT = 20, {"q": 16, "k": 8, "v": 8, "o": 20}


def make_layer(**options: Any) -> DeltaLayer:
    torch.manual_seed(1)
    layer = DeltaLayer(DeltaMemConfig(**{"rank": 4} | options), HIDDEN, OUT).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    return layer


def by_the_book(layer: DeltaLayer, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """DESIGN section 1, one token and one head at a time."""
    c = layer.config
    r, reads = c.rank, []
    for x_t in x:
        q, k, v = (getattr(layer, f"memory_{n}_proj") @ x_t for n in "qkv")
        of_base = layer.memory_base_proj @ x_t if c.base_queries else q
        beta = torch.sigmoid(layer.beta_proj @ x_t + layer.beta_bias)
        beta = ((beta - c.write_gate_floor) / (1 - c.write_gate_floor)).clamp_min(0)
        lam = 1 - beta if c.couple_lambda else torch.sigmoid(layer.lambda_proj @ x_t + layer.lambda_bias)
        heads, read = [], []
        for h in range(c.num_state_heads):
            rows = slice(h * r, (h + 1) * r)
            q_h, k_h, v_h, b_h = q[rows], k[rows], v[rows], of_base[rows]
            if c.normalize_qk:
                q_h, k_h, b_h = (torch.tanh(y) / max(float(torch.tanh(y).norm()), 1e-6) for y in (q_h, k_h, b_h))
            b, y = (g[rows] if c.rankwise_gates else g[h].expand(r) for g in (beta, lam))
            keep, erase = {
                "standard": (y, b),
                "lambda_outside": (y, y * b),
                "no_lambda": (torch.ones_like(b), b),
            }[c.state_update_mode]
            if c.learned_erase:
                erase = erase * 2 * torch.sigmoid(layer.erase_proj[h] @ x_t + layer.erase_bias[h])
            if c.read_gate:
                gate = torch.sigmoid(layer.read_gate_proj[h] @ x_t + layer.read_gate_bias[h])
                opened = max(0.0, (gate - c.read_gate_floor) / (1 - c.read_gate_floor))
                q_h, b_h = q_h * opened, b_h * opened
            s = state[h]
            read.append(s @ q_h + (layer.base_state[h] @ b_h if c.base_state else 0))
            heads.append(torch.diag(keep) @ s - torch.diag(erase) @ torch.outer(s @ k_h, k_h)
                         + torch.diag(b) @ torch.outer(v_h, k_h))  # fmt: skip
        state = torch.stack(heads)
        reads.append(torch.cat(read))
    return torch.stack(reads), state


OPTIONS = [
    {"num_state_heads": heads, "rankwise_gates": rankwise, "couple_lambda": couple, "state_update_mode": mode,
     "normalize_qk": normalize, "read_gate": gate}
    for heads, rankwise, couple, mode, normalize, gate in itertools.product(
        (1, 3), (True, False), (True, False), ("standard", "lambda_outside", "no_lambda"), (True, False), (True, False)
    )
    if couple or mode != "no_lambda"
]  # fmt: skip
OPTIONS += [
    {
        "num_state_heads": heads,
        "base_state": True,
        "base_queries": own,
        "read_gate": gate,
        "read_gate_floor": 0.3 * gate,
    }
    for heads, own, gate in ((1, False, True), (3, False, True), (1, True, True), (3, True, True), (3, True, False))
]
OPTIONS += [{"state_update_mode": mode, "write_gate_floor": 0.4} for mode in ("standard", "no_lambda")]
OPTIONS += [
    {"state_update_mode": mode, "learned_erase": True, "num_state_heads": 3, "rankwise_gates": rows, "read_gate": rows}
    for mode, rows in (("standard", True), ("lambda_outside", False), ("no_lambda", False))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_reads_and_writes(options: dict[str, Any]) -> None:
    layer = make_layer(**options)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 11, HIDDEN, generator=generator, dtype=torch.float64)
    heads = layer.config.num_state_heads
    state = torch.randn(2, heads, 4, 4, generator=generator, dtype=torch.float64)
    reads, after = layer.read_and_write(x, state)
    for b in range(2):
        expected_reads, expected = by_the_book(layer, x[b], state[b])
        torch.testing.assert_close(reads[b], expected_reads)
        torch.testing.assert_close(after[b], expected)


@pytest.mark.parametrize("granularity", ["layer", "head"])
@pytest.mark.parametrize("norm", [False, True])
def test_corrections_with_learned_scales(granularity: str, norm: bool) -> None:
    layer = make_layer(
        trainable_delta_scale=True, delta_scale_granularity=granularity, delta_o_rmsnorm=norm, delta_scale_max=3.0
    )
    reads = torch.randn(1, 5, 4, dtype=torch.float64)
    for index, name in enumerate("qkvo"):
        raw = layer.delta_scale_raw[0 if granularity == "layer" else index]
        expected = (16 / 4) * torch.sigmoid(raw) * 3.0 * reads @ getattr(layer, f"delta_{name}_proj").T
        if norm and name == "o":
            e = expected.float()
            e = e / torch.sqrt(e.pow(2).mean(-1, keepdim=True) + 1e-6)
            torch.testing.assert_close(layer.correction(name, reads).float(), e * layer.delta_o_rmsnorm_weight.float())
        else:
            torch.testing.assert_close(layer.correction(name, reads), expected)


@pytest.mark.parametrize("gate", [False, True])
def test_a_call_that_only_reads_has_the_same_queries(gate: bool) -> None:
    layer = make_layer(num_state_heads=2, read_gate=gate, couple_lambda=False)
    x = torch.randn(2, 7, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(layer.queries(x), layer.signals(x)[0])


def test_a_shut_read_gate_reads_nothing_and_writes_all_the_same() -> None:
    layer = make_layer(read_gate=True)
    x, state = torch.randn(1, 6, HIDDEN, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    _, expected = layer.read_and_write(x, state)
    with torch.no_grad():
        layer.read_gate_proj.zero_()
        layer.read_gate_bias.fill_(-60.0)
    reads, after = layer.read_and_write(x, state)
    assert reads.abs().max() < 1e-20
    torch.testing.assert_close(after, expected)


def test_a_gate_below_its_floor_is_shut_and_can_learn_to_open() -> None:
    layer = make_layer(read_gate=True, read_gate_floor=0.3)
    x, state = torch.randn(1, 6, HIDDEN, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.read_gate_proj.zero_()
        layer.read_gate_bias.fill_(math.log(0.25 / 0.75))
    reads = layer.read(x, state)
    assert (reads == 0).all()
    reads.sum().backward()
    assert layer.read_gate_bias.grad is not None and (layer.read_gate_bias.grad != 0).all()
    with torch.no_grad():
        layer.read_gate_bias.fill_(math.log(0.65 / 0.35))
        open_gate = make_layer()
        torch.testing.assert_close(layer.read(x, state), 0.5 * open_gate.read(x, state))


def test_a_write_gate_below_its_floor_leaves_the_state_and_recall_does_not_open_it() -> None:
    layer = make_layer(write_gate_floor=0.3)
    x, state = torch.randn(1, 6, HIDDEN, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.beta_proj.zero_()
    for gate, opens in ((0.25, False), (0.35, True)):
        with torch.no_grad():
            layer.beta_bias.fill_(math.log(gate / (1 - gate)))
        layer.beta_bias.grad = None
        _, after = layer.read_and_write(x, state)
        assert bool((after != state).any()) is opens
        after.sum().backward()
        assert layer.beta_bias.grad is not None and bool((layer.beta_bias.grad != 0).any()) is opens


def test_a_token_that_is_not_written_reads_all_the_same() -> None:
    layer = make_layer()
    x, state = torch.randn(1, 6, HIDDEN, dtype=torch.float64), torch.randn(1, 1, 4, 4, dtype=torch.float64)
    written = torch.tensor([[True, False, True, False, False, True]])
    reads, after = layer.read_and_write(x, state, None, written)
    _, expected = layer.read_and_write(x[:, [0, 2, 5]], state)
    torch.testing.assert_close(after, expected)
    assert (reads.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("own", [False, True])
def test_a_call_that_only_reads_reads_the_base_state_too_and_padding_reads_nothing(own: bool) -> None:
    layer = make_layer(base_state=True, base_queries=own)
    x, state = torch.randn(2, 5, HIDDEN, dtype=torch.float64), torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [False, False, True, True, True]])
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    reads = layer.read(x, state, valid)
    torch.testing.assert_close(layer.read_and_write(x, state, valid, nothing)[0], reads)
    assert (reads[valid] != 0).all() and (reads[~valid] == 0).all()


def test_initialisation_is_the_published_one() -> None:
    config = DeltaMemConfig(rank=4, couple_lambda=False, beta_bias_init=-1.0, trainable_delta_scale=True)
    layer = DeltaLayer(config, HIDDEN, OUT)
    assert (layer.beta_proj == 0).all() and (layer.lambda_proj == 0).all()
    assert (layer.beta_bias == -1.0).all() and (layer.lambda_bias == 1.0).all()
    assert layer.memory_q_proj.abs().max() <= math.sqrt(1 / HIDDEN) + 1e-6
    assert float(torch.sigmoid(layer.delta_scale_raw) * config.delta_scale_max) == pytest.approx(1.0)
    assert all((getattr(layer, f"delta_{p}_proj") == 0).all() for p in "qkvo")
