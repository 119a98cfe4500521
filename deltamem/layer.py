"""One attention layer's memory: projections, gates, read, write, and the corrections read out of it.

This module holds the adapter's weights for a layer and is a pure function of (hidden states, state). It owns no
conversation: the state comes in and goes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltamem.config import PROJECTIONS, DeltaMemConfig
from deltamem.key_pairs import Lend, lendable, lent, paired, writes
from deltamem.readers import Reader, later_readers
from deltamem.recurrence import Gates, delta_rule, delta_write, gates_from, mask_gates, uses_kernels

UNIT_EPS = 1e-6
"""Length below which a query or a key is not scaled up to 1."""

_READ_GATE_OPEN = 3.0
"""Bias a read gate starts with: almost open, so that training decides where to shut it."""
_JOINT_GATE_OPEN = 1.0
"""Bias a layer's part in the joint gate starts with: open."""


class Told(NamedTuple):
    """What is written of hidden states; all (B, T, H, r) except gates that may have a last axis of 1."""

    k: Tensor
    v: Tensor
    gates: Gates


class DeltaLayer(nn.Module):
    """The adapter's weights for one attention layer (arXiv 2605.12357, section on the memory module).

    Args:
        config: the adapter's configuration.
        hidden_size: width of the hidden state that enters the attention.
        out_features: output width of each of the q, k, v and o projections.

    Parameters have the published names: ``memory_{q,k,v}_proj`` (H*r, hidden), ``beta_proj`` (g, hidden),
    ``beta_bias`` (g), ``lambda_proj`` and ``lambda_bias`` when lambda is free, ``delta_{q,k,v,o}_proj``
    (out_features, H*r), ``delta_o_rmsnorm_weight`` (hidden), ``delta_scale_raw`` (1 or 4). Ours are
    ``read_gate_proj`` (H, hidden) and ``read_gate_bias`` (H), when there is a read gate, ``base_state`` (H, r, r), and
    ``memory_base_proj`` (H*r, hidden), when that is asked with queries of its own, ``erase_proj`` (H, hidden) and
    ``erase_bias`` (H), when what is erased is learned, and ``joint_gate_proj`` (1, hidden) and ``joint_gate_bias``
    (1), this layer's part in the gate of all of them, when there is one. A second reader has ``second_q_proj``,
    ``second_read_gate_proj`` and ``second_joint_gate_proj`` as the first, with the same biases, and ``route_proj``
    (1, hidden) and ``route_bias`` (1), this layer's part in whose reads count; a third one the same, ``third_q_proj``
    and so on, and ``third_route_proj`` and ``third_route_bias``. What is read plainly is ``plain_read_proj`` (H*r,
    hidden). A table (choices.py) has ``choice_proj`` (choice_rank, hidden), ``choice_keys`` (choices, choice_rank),
    ``choice_bias`` (choices) and ``choice_values`` (out_features of o, choices).
    """

    memory_q_proj: nn.Parameter
    memory_k_proj: nn.Parameter
    memory_v_proj: nn.Parameter
    beta_proj: nn.Parameter
    beta_bias: nn.Parameter
    lambda_proj: nn.Parameter
    lambda_bias: nn.Parameter
    delta_q_proj: nn.Parameter
    delta_k_proj: nn.Parameter
    delta_v_proj: nn.Parameter
    delta_o_proj: nn.Parameter
    delta_o_rmsnorm_weight: nn.Parameter
    delta_scale_raw: nn.Parameter
    read_gate_proj: nn.Parameter
    read_gate_bias: nn.Parameter
    joint_gate_proj: nn.Parameter
    joint_gate_bias: nn.Parameter
    second_q_proj: nn.Parameter
    second_read_gate_proj: nn.Parameter
    second_joint_gate_proj: nn.Parameter
    route_proj: nn.Parameter
    route_bias: nn.Parameter
    third_q_proj: nn.Parameter
    third_read_gate_proj: nn.Parameter
    third_joint_gate_proj: nn.Parameter
    third_route_proj: nn.Parameter
    third_route_bias: nn.Parameter
    base_state: nn.Parameter
    memory_base_proj: nn.Parameter
    plain_read_proj: nn.Parameter
    choice_proj: nn.Parameter
    choice_keys: nn.Parameter
    choice_bias: nn.Parameter
    choice_values: nn.Parameter
    erase_proj: nn.Parameter
    erase_bias: nn.Parameter

    def __init__(self, config: DeltaMemConfig, hidden_size: int, out_features: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = hidden_size
        for name, shape in self.shapes(config, hidden_size, out_features).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        own = ["memory_base_proj"] * config.base_queries
        own += [reader.instead["memory_q_proj"] for reader in later_readers(config)]
        for name in ("memory_q_proj", "memory_k_proj", "memory_v_proj", *own):
            nn.init.kaiming_uniform_(getattr(self, name), a=math.sqrt(5))
        nn.init.constant_(self.beta_bias, config.beta_bias_init)
        if config.needs_lambda:
            nn.init.constant_(self.lambda_bias, -config.beta_bias_init)
        if config.read_gate:
            nn.init.constant_(self.read_gate_bias, _READ_GATE_OPEN)
        if config.joint_gate:
            nn.init.constant_(self.joint_gate_bias, _JOINT_GATE_OPEN)
        for reader in later_readers(config):
            # Those before it count, until it is learnt.
            nn.init.constant_(getattr(self, f"{reader.route}_bias"), -_JOINT_GATE_OPEN)
        if config.delta_o_rmsnorm:
            nn.init.ones_(self.delta_o_rmsnorm_weight)
        if config.trainable_delta_scale:
            share = config.delta_scale_init / config.delta_scale_max
            nn.init.constant_(self.delta_scale_raw, math.log(share / (1 - share)))

    @staticmethod
    def shapes(config: DeltaMemConfig, hidden_size: int, out_features: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a layer's tensors, as they are on disk."""
        width, gates = config.num_state_heads * config.rank, config.gate_width
        shapes: dict[str, tuple[int, ...]] = {f"memory_{p}_proj": (width, hidden_size) for p in "qkv"}
        shapes |= {"beta_proj": (gates, hidden_size), "beta_bias": (gates,)}
        if config.needs_lambda:
            shapes |= {"lambda_proj": (gates, hidden_size), "lambda_bias": (gates,)}
        if config.read_gate:
            heads = config.num_state_heads
            shapes |= {"read_gate_proj": (heads, hidden_size), "read_gate_bias": (heads,)}
        if config.joint_gate:
            shapes |= {"joint_gate_proj": (1, hidden_size), "joint_gate_bias": (1,)}
        for reader in later_readers(config):
            shapes |= {own: shapes[first] for first, own in reader.instead.items() if first in shapes}
            shapes |= {f"{reader.route}_proj": (1, hidden_size), f"{reader.route}_bias": (1,)}
        if config.base_state:
            shapes["base_state"] = (config.num_state_heads, config.rank, config.rank)
        if config.base_queries:
            shapes["memory_base_proj"] = (width, hidden_size)
        if config.plain_read:
            shapes["plain_read_proj"] = (width, hidden_size)
        if config.choices:
            shapes |= {"choice_proj": (config.choice_rank, hidden_size)}
            shapes |= {"choice_keys": (config.choices, config.choice_rank), "choice_bias": (config.choices,)}
            shapes |= {"choice_values": (out_features["o"], config.choices)}
        if config.learned_erase:
            shapes |= {"erase_proj": (config.num_state_heads, hidden_size), "erase_bias": (config.num_state_heads,)}
        shapes |= {f"delta_{p}_proj": (out_features[p], width) for p in PROJECTIONS}
        if config.delta_o_rmsnorm:
            shapes["delta_o_rmsnorm_weight"] = (out_features["o"],)
        if config.trainable_delta_scale:
            shapes["delta_scale_raw"] = (1,) if config.delta_scale_granularity == "layer" else (4,)
        return shapes

    # Signals

    def _asking(self, reader: Reader | None = None) -> list[Tensor]:
        names = ["memory_q_proj", *["read_gate_proj"] * self.config.read_gate]
        return [getattr(self, name if reader is None else reader.instead[name]) for name in names]

    def _telling(self) -> list[Tensor]:
        free = [self.lambda_proj] if self.config.needs_lambda else []
        erased = [self.erase_proj] if self.config.learned_erase else []
        return [self.memory_k_proj, self.memory_v_proj, self.beta_proj, *free, *erased]

    def _projections(self) -> list[Tensor]:
        query, *gate = self._asking()
        return [query, *self._telling(), *gate]

    def signals(self, x: Tensor, lend: Lend | None = None) -> tuple[Tensor, Told]:
        """Queries (B, T, H, r), and what is written of hidden states x (B, T, hidden).

        `lend` is for keys in pairs; without it nothing was written before the first token.
        """
        # One product for all projections; they share their input.
        products = F.linear(x.to(self.memory_q_proj.dtype), torch.cat(self._projections()))
        width, gates = len(self.memory_q_proj), len(self.read_gate_proj) if self.config.read_gate else 0
        raw, told, gate = products.split([width, products.shape[-1] - width - gates, gates], -1)
        told = told + self._told_bias()
        if self.config.keys == "pair":
            told = self.lend_to(told, lend or partial(lent, first=None, there=None, fading=self.config.fading))
        return self._queries(raw, gate), told_of(self.config, told)

    def lend_to(self, products: Tensor, lend: Lend) -> Tensor:
        """`told_products` (B, T, n) with what is lent in them, where keys are in pairs."""
        return paired(self.config, products, lend(self._lends(products)))

    def _lends(self, products: Tensor, bias: Tensor | None = None) -> Tensor:
        """What tokens lend, of `told_products`; `bias` is for those that have none on their gates yet."""
        width, gates = len(self.memory_k_proj), len(self.beta_bias)
        raw = products[..., 2 * width : 2 * width + gates]
        return lendable(self.config, products[..., :width], raw if bias is None else raw + bias)

    def queries(self, x: Tensor, reader: Reader | None = None) -> Tensor:
        """Queries alone, (B, T, H, r), for a call that only reads: the first reader's, or those of a later one."""
        products = F.linear(x.to(self.memory_q_proj.dtype), torch.cat(self._asking(reader)))
        width = len(self.memory_q_proj)
        return self._queries(products[..., :width], products[..., width:])

    def told_products(self, x: Tensor) -> Tensor:
        """What `told_of` works on, (B, T, n): of a token, all that its write needs."""
        return F.linear(x.to(self.memory_q_proj.dtype), torch.cat(self._telling()), self._told_bias())

    def told(self, x: Tensor) -> Told:
        """What is written of hidden states x (B, T, hidden)."""
        return told_of(self.config, self.told_products(x))

    def _told_bias(self) -> Tensor:
        plain = self.beta_bias.new_zeros(2 * len(self.memory_k_proj))
        free = [self.lambda_bias] if self.config.needs_lambda else []
        erased = [self.erase_bias] if self.config.learned_erase else []
        return torch.cat([plain, self.beta_bias, *free, *erased])

    def write_gates(self, x: Tensor) -> Tensor:
        """How far each token's write gates stand open, (B, T, H, r or 1), 0 to 1, before any floor."""
        raw = F.linear(x.to(self.beta_proj.dtype), self.beta_proj, self.beta_bias)
        gates: Tensor = torch.sigmoid(raw).unflatten(-1, (self.config.num_state_heads, -1))
        return gates

    def read_gates(self, x: Tensor) -> Tensor:
        """How far each token's read gate stands open, (B, T, H), 0 to 1, before any floor; for a layer that has one."""
        return torch.sigmoid(F.linear(x.to(self.read_gate_proj.dtype), self.read_gate_proj) + self.read_gate_bias)

    def joint_logits(self, x: Tensor) -> Tensor:
        """This layer's part in the logits of gates of all layers, of hidden states x (B, T, hidden): (B, T, 1) for the
        joint gate, and two more for each later reader: its joint gate and its route. For a layer that has one.
        """
        weights: list[Tensor] = [self.joint_gate_proj]
        biases: list[Tensor] = [self.joint_gate_bias]
        for reader in later_readers(self.config):
            names = reader.instead["joint_gate_proj"], f"{reader.route}_proj", f"{reader.route}_bias"
            own, route, bias = (getattr(self, name) for name in names)
            weights += [own, route]
            biases += [self.joint_gate_bias, bias]
        return F.linear(x.to(weights[0].dtype), torch.cat(weights), torch.cat(biases))

    def _queries(self, raw: Tensor, gate: Tensor) -> Tensor:
        """(B, T, H, r). Reads are linear in the query, so the read gate is its length."""
        q: Tensor = raw.unflatten(-1, (self.config.num_state_heads, self.config.rank))
        if self.config.normalize_qk:
            q = unit(torch.tanh(q))
        if self.config.read_gate:
            opened = torch.sigmoid(gate + self.read_gate_bias)
            q = q * read_gate_above(opened, self.config.read_gate_floor).unsqueeze(-1)
        return q

    def _of_base(self, x: Tensor, q: Tensor | None, valid: Tensor | None) -> Tensor:
        """What x (B, T, hidden) reads of the base state, (B, T, H, r), with q or with queries of its own."""
        if self.config.base_queries or q is None:
            weights = [self.memory_base_proj, *self._asking()[1:]]
            products = F.linear(x.to(self.memory_base_proj.dtype), torch.cat(weights))
            width = len(self.memory_base_proj)
            q = self._queries(products[..., :width], products[..., width:])
        reads = torch.einsum("hij,bthj->bthi", self.base_state, q)
        return reads if valid is None else reads.masked_fill(~valid[:, :, None, None], 0.0)

    # Read and write

    def read(self, x: Tensor, state: Tensor, valid: Tensor | None = None) -> Tensor:
        """Reads of x (B, T, hidden) from a state (B, H, r, r) that stays as it is: (B, T, H*r), and after them those of
        later readers, if there are such, and what is read plainly.
        """
        readers = (None, *later_readers(self.config))
        found = [self._read(x, self.queries(x, reader), state, valid) for reader in readers]
        return torch.cat([*found, *self._plainly(x, valid)], dim=-1)

    def _plainly(self, x: Tensor, valid: Tensor | None) -> list[Tensor]:
        """What is read without a query, (B, T, H*r), where there is such."""
        if not self.config.plain_read:
            return []
        reads = F.linear(x.to(self.plain_read_proj.dtype), self.plain_read_proj)
        return [reads if valid is None else reads.masked_fill(~valid[..., None], 0.0)]

    def _read(self, x: Tensor, q: Tensor, state: Tensor, valid: Tensor | None) -> Tensor:
        reads = torch.einsum("bhij,bthj->bthi", state, q)
        if self.config.base_state:
            reads = reads + self._of_base(x, q, None)
        if valid is not None:
            reads = reads.masked_fill(~valid[:, :, None, None], 0.0)
        return reads.flatten(-2)

    def read_and_write(
        self,
        x: Tensor,
        state: Tensor,
        valid: Tensor | None = None,
        written: Tensor | None = None,
        trace: Callable[[Tensor], None] | None = None,
        lend: Lend | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Token-state write: each token reads, then writes. Reads, as `read` gives them, and the new state.

        Padding (not `valid`) does neither; a token that is not `written` (B, T) reads only. `trace` is given the
        write gates (B, T, H, r or 1). `lend` is for keys in pairs; without it nothing was written before the first
        token.
        """
        config = self.config
        lend = lend or partial(lent, first=None, there=writes(valid, written), fading=config.fading)
        if x.shape[1] == 1 and not torch.is_grad_enabled() and uses_kernels(x, config.rank):
            return self._token(x, state, valid, written, trace, lend)
        q, (k, v, gates) = self.signals(x, lend)
        if written is not None:
            gates = mask_gates(gates, written)
        if trace is not None:
            trace(gates.write)
        readers = [q, *(self.queries(x, reader) for reader in later_readers(config))]
        # The recurrence once for each: a call of many tokens that reads and writes is a training step's, or short.
        every = [delta_rule(q, k, v, gates, state, valid) for q in readers]
        found = [reads for reads, _ in every]
        if config.base_state:
            found = [reads + self._of_base(x, q, valid) for reads, q in zip(found, readers, strict=True)]
        reads = torch.cat([*(reads.flatten(-2) for reads in found), *self._plainly(x, valid)], dim=-1)
        return reads, every[0][1]

    def _token(
        self,
        x: Tensor,
        state: Tensor,
        valid: Tensor | None,
        written: Tensor | None,
        trace: Callable[[Tensor], None] | None,
        lend: Lend,
    ) -> tuple[Tensor, Tensor]:
        """One token of every sequence, in one launch after the projections."""
        from deltamem.recurrence.token_kernel import token_kernel

        config = self.config
        products = F.linear(x[:, 0].to(self.memory_q_proj.dtype), torch.cat(self._projections()))
        if config.keys == "pair":
            width = len(self.memory_k_proj)
            told = products[:, width:]
            added = lend(self._lends(told, self.beta_bias)[:, None])[:, 0]
            products = torch.cat([products[:, :width], paired(config, told, added)], -1)
        # Before the kernel: each token reads what was there before it.
        later = later_readers(config)
        besides = [self._read(x, self.queries(x, reader), state, valid)[:, 0] for reader in later]
        besides += [reads[:, 0] for reads in self._plainly(x, valid)]
        everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
        reads, state, gates = token_kernel(
            config,
            products,
            (
                self.beta_bias,
                self.lambda_bias if config.needs_lambda else None,
                self.erase_bias if config.learned_erase else None,
                self.read_gate_bias if config.read_gate else None,
            ),
            state,
            everywhere if valid is None else valid[:, 0],
            everywhere if written is None else written[:, 0],
            UNIT_EPS,
            self.base_state if config.base_state and not config.base_queries else None,
        )
        if config.base_queries:
            reads = reads + self._of_base(x, None, valid).flatten(1)
        if trace is not None:
            trace(gates[:, None])
        return torch.cat([reads, *besides], dim=-1)[:, None], state

    def write(self, told: Told, state: Tensor, valid: Tensor | None = None) -> Tensor:
        """Token-state write of what is worked out already: the new state."""
        return delta_write(*told, state, valid)

    def write_means(
        self,
        means: Tensor,
        state: Tensor,
        valid: Tensor | None = None,
        trace: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Sequence-state write: one write for each segment mean (B, M, hidden), in order."""
        told = self.told(means)
        if trace is not None:
            trace(told.gates.write)
        return self.write(told, state, valid)

    # Corrections

    def corrects(self, projection: str) -> bool:
        """Whether this projection ("q", "k", "v" or "o") gets a correction."""
        return projection in self.config.delta_heads

    def correction(self, projection: str, reads: Tensor) -> Tensor:
        """What is added to a projection's output, (B, T, out_features), from reads (B, T, H*r)."""
        config = self.config
        scale: Tensor | float = config.alpha / config.rank
        if config.trainable_delta_scale:
            raw = self.delta_scale_raw
            one = raw[0] if raw.numel() == 1 else raw[PROJECTIONS.index(projection)]
            scale = scale * torch.sigmoid(one) * config.delta_scale_max
        delta = F.linear(reads, getattr(self, f"delta_{projection}_proj")) * scale
        if projection == "o" and config.delta_o_rmsnorm:
            delta = delta.float()
            variance = delta.pow(2).mean(-1, keepdim=True)
            delta = delta * torch.rsqrt(variance + config.delta_o_rmsnorm_eps) * self.delta_o_rmsnorm_weight
        return delta


def told_of(config: DeltaMemConfig, products: Tensor) -> Told:
    """Keys, values and gates from `DeltaLayer.told_products` (B, T, n), of one layer or of several side by side."""
    heads, rank = config.num_state_heads, config.rank
    free = config.gate_width if config.needs_lambda else 0
    erased = heads if config.learned_erase else 0
    raw, v, beta, lam, erase = products.split([heads * rank, heads * rank, config.gate_width, free, erased], -1)
    k, v = (part.unflatten(-1, (heads, rank)) for part in (raw, v))
    if config.normalize_qk:
        k = unit(torch.tanh(k))
    beta = torch.sigmoid(beta).unflatten(-1, (heads, -1))
    if config.write_gate_floor:
        # No gradient passes by this floor: what opens a gate is the loss on gates. With recall's own gradient let
        # through, the gates of small talk crept up after the floor until they erased as much as without one.
        beta = _above(beta, config.write_gate_floor).clamp_min(0)
    lam = torch.sigmoid(lam).unflatten(-1, (heads, -1)) if free else 1 - beta
    gates = gates_from(beta, lam, config.state_update_mode)
    if erased:
        # 1, the delta rule's, where nothing is learnt; below 2 what is left is shorter than what was there.
        gates = gates._replace(erase=gates.erase * (2 * torch.sigmoid(erase))[..., None])
    return Told(k, v, gates)


def unit(x: Tensor) -> Tensor:
    """x scaled to length 1 along its last axis, but for what is shorter than `UNIT_EPS`."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(UNIT_EPS)


def read_gate_above(opened: Tensor, floor: float) -> Tensor:
    """Read gates, 0 to 1, as they are above their floor."""
    if not floor:
        return opened
    above = _above(opened, floor)
    # A gate that is shut must be able to learn to open, so the gradient passes the floor by.
    return above + (above.clamp_min(0) - above).detach()


def _above(gate: Tensor, floor: float) -> Tensor:
    """How far gates are above their floor, 1 at most; below 0 where they are below it."""
    return (gate - floor) / (1 - floor)
