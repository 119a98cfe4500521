"""One token of every sequence of a batch on a GPU: normalise, gate, read and write in a single launch, in Triton.

What comes in are the products of a layer's projections with the token, in the order of `DeltaLayer.signals`; what goes
out are reads, new states and write gates. Tested as `kernels.py` is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltamem.config import DeltaMemConfig


def token_kernel(
    config: DeltaMemConfig,
    products: Tensor,
    biases: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    state: Tensor,
    valid: Tensor,
    written: Tensor,
    eps: float,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read and write one token.

    Args:
        config: of the adapter.
        products: (B, n) float32: of the q, k, v, beta and, where there are such, lambda, erase gate and read gate
            projections.
        biases: of the write gates, of free lambdas, of erase gates, and of the read gates; None where there are none.
        state: (B, H, r, r).
        valid: (B) bool, false for padding, which reads zero.
        written: (B) bool, false for what leaves the state as it is.
        eps: length below which a query or a key is not scaled up to 1.
        base: (H, r, r), read together with the state; None for nothing.

    Returns:
        Reads (B, H * r), states (B, H, r, r), and write gates (B, H, r) or (B, H, 1).
    """
    batch, heads, rank = state.shape[:3]
    of_gates = rank if config.rankwise_gates else 1
    products, state = products.contiguous(), state.contiguous()
    reads = products.new_empty(batch, heads * rank)
    after = torch.empty_like(state)
    gates = products.new_empty(batch, heads, of_gates)
    beta_bias, lambda_bias, erase_bias, read_bias = biases
    _token[(batch, heads)](
        products, beta_bias, beta_bias if lambda_bias is None else lambda_bias,
        beta_bias if erase_bias is None else erase_bias, beta_bias if read_bias is None else read_bias,
        state, state if base is None else base.contiguous(), valid.to(torch.int32), written.to(torch.int32),
        reads, after, gates, products.shape[1],
        HEADS=heads, R=rank, G=of_gates, NORMALIZE=config.normalize_qk, MODE=config.state_update_mode,
        FREE=lambda_bias is not None, ERASES=erase_bias is not None, OPENS=read_bias is not None,
        READ_FLOOR=config.read_gate_floor, WRITE_FLOOR=config.write_gate_floor, BASE=base is not None, EPS=eps,
    )  # fmt: skip
    return reads, after, gates


@triton.jit
def _unit(x, EPS: tl.constexpr):
    x = 2 * tl.sigmoid(2 * x) - 1  # the hyperbolic tangent
    length = tl.sqrt(tl.sum(x * x, 0))
    return x / tl.maximum(length, EPS)


@triton.jit
def _token(z_p, beta_bias_p, lambda_bias_p, erase_bias_p, read_bias_p, state_p, base_p, valid_p, written_p,
           reads_p, after_p, gates_p,
           n, HEADS: tl.constexpr, R: tl.constexpr, G: tl.constexpr, NORMALIZE: tl.constexpr, MODE: tl.constexpr,
           FREE: tl.constexpr, ERASES: tl.constexpr, OPENS: tl.constexpr, READ_FLOOR: tl.constexpr,
           WRITE_FLOOR: tl.constexpr, BASE: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    a, g = tl.arange(0, R), tl.arange(0, G)
    width: tl.constexpr = HEADS * R
    z = z_p + row * n
    valid = tl.load(valid_p + row).to(tl.float32)
    written = tl.load(written_p + row).to(tl.float32) * valid
    q = tl.load(z + head * R + a)
    k = tl.load(z + width + head * R + a)
    v = tl.load(z + 2 * width + head * R + a)
    if NORMALIZE:
        q = _unit(q, EPS)
        k = _unit(k, EPS)
    beta = tl.sigmoid(tl.load(z + 3 * width + head * G + g) + tl.load(beta_bias_p + head * G + g))
    beta = tl.maximum(beta - WRITE_FLOOR, 0.0) / (1 - WRITE_FLOOR)
    after_gates: tl.constexpr = 3 * width + HEADS * G
    opened = valid
    if OPENS:
        place = after_gates + (HEADS * G if FREE else 0) + (HEADS if ERASES else 0) + head
        gate = tl.sigmoid(tl.load(z + place) + tl.load(read_bias_p + head))
        opened = valid * tl.maximum(gate - READ_FLOOR, 0.0) / (1 - READ_FLOOR)
    square = (row * HEADS + head) * R * R + a[:, None] * R + a[None, :]
    state = tl.load(state_p + square)
    seen = state
    if BASE:
        seen = state + tl.load(base_p + head * R * R + a[:, None] * R + a[None, :])
    tl.store(reads_p + row * width + head * R + a, opened * tl.sum(seen * q[None, :], 1))
    erase = beta
    keep = 1 - beta
    if MODE == "no_lambda":
        keep = 1 + 0 * beta
    else:
        if FREE:
            keep = tl.sigmoid(tl.load(z + after_gates + head * G + g) + tl.load(lambda_bias_p + head * G + g))
        if MODE == "lambda_outside":
            erase = keep * beta
    if ERASES:
        place = after_gates + (HEADS * G if FREE else 0) + head
        erase = erase * 2 * tl.sigmoid(tl.load(z + place) + tl.load(erase_bias_p + head))
    gain = beta * v - erase * tl.sum(state * k[None, :], 1)
    changed = keep[:, None] * state + gain[:, None] * k[None, :]
    tl.store(after_p + square, written * changed + (1 - written) * state)
    tl.store(gates_p + (row * HEADS + head) * G + g, written * beta)
