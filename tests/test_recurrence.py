"""The token loop is the definition; the fast forms give its numbers, its final state and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deltamem.recurrence import Gates, delta_rule_chunked, delta_rule_naive, delta_rule_step, gates_from

LENGTHS = (1, 2, 63, 64, 65, 150, 1000)
MODES = ("standard", "lambda_outside", "no_lambda")


def problem(
    length: int, mode: str, dtype: torch.dtype, batch: int = 2, heads: int = 2, rank: int = 8, saturated: bool = False
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (batch, length, heads, rank)
    q, k = (torch.nn.functional.normalize(torch.tanh(normal(*shape)), dim=-1) for _ in range(2))
    beta, lam = (torch.sigmoid(normal(*shape) * (12 if saturated else 2)) for _ in range(2))
    if saturated:
        lam[:, ::7] = 0.0  # keep can reach exactly zero
    leaves = [q, k, normal(*shape), beta, lam, normal(batch, heads, rank, rank)]
    return [x.to(dtype).requires_grad_() for x in leaves], torch.rand(batch, length, generator=generator) < 0.8


def run(rule, leaves, mode, valid):  # type: ignore[no-untyped-def]
    q, k, v, beta, lam, state = leaves
    return rule(q, k, v, gates_from(beta, lam, mode), state, valid)


def gradients(outputs: tuple[Tensor, Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    assert isinstance(loss, Tensor)
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True))


def worst(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    return max(
        float((x - y).detach().abs().max() / y.detach().abs().max().clamp_min(1)) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_the_loop_in_float64(length: int, mode: str, masked: bool) -> None:
    leaves, mask = problem(length, mode, torch.float64)
    valid = mask if masked else None
    expected = run(delta_rule_naive, leaves, mode, valid)
    actual = run(delta_rule_chunked, leaves, mode, valid)
    assert worst(actual, expected) < 1e-10
    assert worst(gradients(actual, leaves), gradients(expected, leaves)) < 1e-10


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", (65, 1000))
def test_chunked_holds_with_saturated_gates(length: int, mode: str) -> None:
    leaves, mask = problem(length, mode, torch.float64, saturated=True)
    expected, actual = (run(rule, leaves, mode, mask) for rule in (delta_rule_naive, delta_rule_chunked))
    assert worst(actual, expected) < 1e-10
    for gradient in gradients(actual, leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_in_float32_is_the_loop_in_float64(length: int, mode: str) -> None:
    exact, mask = problem(length, mode, torch.float64)
    leaves, _ = problem(length, mode, torch.float32)
    expected = run(delta_rule_naive, exact, mode, mask)
    actual = run(delta_rule_chunked, leaves, mode, mask)
    assert worst(tuple(x.double() for x in actual), expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_single_steps_are_the_loop(mode: str) -> None:
    leaves, mask = problem(20, mode, torch.float64, batch=3)
    q, k, v, beta, lam, state = leaves
    expected, last = run(delta_rule_naive, leaves, mode, mask)
    gates = gates_from(beta, lam, mode)
    for t in range(20):
        part = slice(t, t + 1)
        here = Gates(*(g if g is None else g[:, part] for g in gates))
        read, state = delta_rule_step(q[:, part], k[:, part], v[:, part], here, state, mask[:, part])
        torch.testing.assert_close(read, expected[:, part], atol=1e-12, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=0)


def test_a_step_takes_one_token() -> None:
    leaves, _ = problem(2, "standard", torch.float64)
    with pytest.raises(ValueError, match="one token"):
        run(delta_rule_step, leaves, "standard", None)


def test_a_masked_token_reads_zero_and_writes_nothing() -> None:
    leaves, _ = problem(5, "standard", torch.float64)
    valid = torch.tensor([[True, False, True, True, False]] * 2)
    reads, state = run(delta_rule_naive, leaves, "standard", valid)
    assert (reads[:, [1, 4]] == 0).all() and (reads[:, [0, 2, 3]] != 0).all()
    shorter = [x[:, [0, 2, 3]] if x.shape[1] == 5 else x for x in leaves]
    expected_reads, expected = run(delta_rule_naive, shorter, "standard", None)
    torch.testing.assert_close(state, expected)
    torch.testing.assert_close(reads[:, [0, 2, 3]], expected_reads)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", LENGTHS)
def test_gates_that_all_rows_share_act_on_all_rows(length: int, mode: str) -> None:
    leaves, mask = problem(length, mode, torch.float64)
    q, k, v, beta, lam, state = leaves
    expected = run(
        delta_rule_naive,
        [q, k, v, beta[..., :1].expand_as(beta), lam[..., :1].expand_as(lam), state],
        mode,
        mask,
    )
    slopes = gradients(expected, leaves)
    for rule in (delta_rule_naive, delta_rule_chunked):
        actual = run(rule, [q, k, v, beta[..., :1], lam[..., :1], state], mode, mask)
        assert worst(actual, expected) < 1e-10
        assert worst(gradients(actual, leaves), slopes) < 1e-10


def test_strong_forgetting_does_not_cancel_in_float32() -> None:
    """A difference of prefix sums of log keep loses 6e-5 here."""
    exact, _ = problem(64, "standard", torch.float64)
    exact = [x.detach() for x in exact]
    exact[4] = torch.full_like(exact[4], 1e-3)
    single = [x.float() for x in exact]
    expected = run(delta_rule_naive, exact, "standard", None)
    actual = run(delta_rule_chunked, single, "standard", None)
    assert worst(tuple(x.double() for x in actual), expected) < 3e-6
