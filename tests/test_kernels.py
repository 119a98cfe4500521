"""The GPU kernels through Triton's interpreter: the token loop's numbers, final state and gradients."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from deltamem.recurrence import delta_rule_naive, gates_from, kernels
from deltamem.recurrence.kernels import delta_rule_kernels
from tests.test_recurrence import MODES, gradients, problem, run, worst

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="scripts/gpu_check.py runs them on the GPU itself")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks from few tokens: the interpreter takes a millisecond for each."""
    monkeypatch.setattr(kernels, "CHUNK", 16)
    monkeypatch.setattr(kernels, "CHUNK_BACK", 8)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1, 17, 34])
def test_kernels_are_the_loop(length: int, mode: str, masked: bool) -> None:
    exact, mask = problem(length, mode, torch.float64, batch=1)
    leaves, _ = problem(length, mode, torch.float32, batch=1)
    valid = mask if masked else None
    expected, actual = run(delta_rule_naive, exact, mode, valid), run(delta_rule_kernels, leaves, mode, valid)
    assert worst(tuple(x.double() for x in actual), expected) < 1e-5
    found = tuple(x.double() for x in gradients(actual, leaves))
    assert worst(found, gradients(expected, exact)) < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_gates_that_all_rows_share(mode: str) -> None:
    exact, _ = problem(20, mode, torch.float64, batch=1)
    leaves, _ = problem(20, mode, torch.float32, batch=1)
    outputs = []
    for rule, (q, k, v, beta, lam, state) in ((delta_rule_naive, exact), (delta_rule_kernels, leaves)):
        outputs.append(rule(q, k, v, gates_from(beta[..., :1], lam[..., :1], mode), state))
    expected, actual = outputs
    assert worst(tuple(x.double() for x in actual), expected) < 1e-5
    found = tuple(x.double() for x in gradients(actual, leaves))
    assert worst(found, gradients(expected, exact)) < 1e-4
