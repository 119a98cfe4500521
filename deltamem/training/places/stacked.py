"""The adapter's layers as one, for places: what each layer does to its own hidden states is one product for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from deltamem.choices import chosen
from deltamem.key_pairs import lendable, paired
from deltamem.layer import DeltaLayer, read_gate_above, unit
from deltamem.readers import Reader, later_readers, shares_of
from deltamem.side_by_side import write_side_by_side
from deltamem.training.places.by_row import ByRow


class Stacked:
    """Gradients reach the layers' own weights. It is made anew for every step.

    Args:
        layers: of one adapter; hidden states are (layers, N, hidden size).
        instead: of some of their weights by name, what stands in their place, (layers, ...).
    """

    def __init__(self, layers: Sequence[DeltaLayer], instead: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self._layers = list(layers)
        self._stacks: dict[str, Tensor] = dict(instead)
        self.config = layers[0].config

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self._layers[0].memory_q_proj.device
        return device

    def _all(self, name: str) -> Tensor:
        if name not in self._stacks:
            self._stacks[name] = torch.stack([getattr(layer, name) for layer in self._layers])
        return self._stacks[name]

    def _product(self, x: Tensor, name: str) -> Tensor:
        return torch.bmm(x, self._all(name).mT)

    def told_products(self, found_by: Tensor, before: Tensor | None, said: Tensor) -> Tensor:
        """`DeltaLayer.told_products`, (layers, N, n).

        Args:
            found_by: what keys and write gates are made of.
            before: what was written right before, with keys in pairs; with what that passes on (`Bank.before`).
            said: what values are made of.
        """
        gates = [("beta_proj", "beta_bias")] + [("lambda_proj", "lambda_bias")] * self.config.needs_lambda
        gates += [("erase_proj", "erase_bias")] * self.config.learned_erase
        made = [self._product(found_by, proj) + self._all(bias)[:, None] for proj, bias in gates]
        keys, values = self._product(found_by, "memory_k_proj"), self.values(said)
        products = torch.cat([keys, values, *made], dim=-1)
        if before is None:
            return products
        return paired(self.config, products, self._lent_by(before))

    def _lent_by(self, before: Tensor) -> Tensor:
        """What was written right before lends, (layers, N, n); where that is nothing, hidden states are zeros."""
        keys = self._product(before, "memory_k_proj")
        if self.config.own_share == 1 or self.config.fading:
            return keys
        opening = self._product(before, "beta_proj") + self._all("beta_bias")[:, None]
        return lendable(self.config, keys, opening.masked_fill(~before.any(-1, keepdim=True), -torch.inf))

    def written(self, found_by: Tensor, before: Tensor | None, said: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """What histories leave behind: states (layers, B, H, r, r), and `told_products` (layers, B, T, n).

        Args:
            found_by: of their tokens, (layers, B, T, hidden size).
            before: the same of what was written right before, with keys in pairs.
            said: the same of what values are made of.
            valid: (B, T).
        """
        flat = None if before is None else before.flatten(1, 2)
        products = self.told_products(found_by.flatten(1, 2), flat, said.flatten(1, 2))
        products = products.unflatten(1, valid.shape)
        return self.left_by(products, valid), products

    def left_by(self, products: Tensor, valid: Tensor) -> Tensor:
        """States (layers, B, H, r, r) that histories leave behind, from `told_products` (layers, B, T, n)."""
        config = self.config
        sides = config.num_state_heads, config.rank, config.rank
        empty = torch.zeros(len(valid), *sides, device=products.device)
        return write_side_by_side(config, products.unbind(), [empty] * len(products), valid, None)[0]

    def values(self, x: Tensor) -> Tensor:
        """(layers, N, H * r)."""
        return self._product(x, "memory_v_proj")

    def write_gates(self, x: Tensor) -> Tensor:
        """How far write gates stand open, (layers, N, gates), before any floor."""
        return torch.sigmoid(self._product(x, "beta_proj") + self._all("beta_bias")[:, None])

    def read_gates(self, x: Tensor) -> Tensor:
        """How far read gates stand open, (layers, N, H), before any floor."""
        return torch.sigmoid(self._product(x, "read_gate_proj") + self._all("read_gate_bias")[:, None])

    def joint_logits(self, x: Tensor) -> Tensor:
        """Logits of the joint gate, (N,)."""
        return self._summed(x, "joint_gate_proj", "joint_gate_bias")

    def _summed(self, x: Tensor, proj: str, bias: str) -> Tensor:
        parts = self._product(x, proj)[..., 0] + self._all(bias)
        return parts.sum(0)

    def shares(self, x: Tensor) -> Tensor:
        """What each reader's reads count for, and what is read plainly (`shares_of`), (N, n)."""
        logits = [self.joint_logits(x)]
        for reader in later_readers(self.config):
            opened = self._summed(x, reader.instead["joint_gate_proj"], "joint_gate_bias")
            logits += [opened, self._summed(x, f"{reader.route}_proj", f"{reader.route}_bias")]
        return shares_of(torch.stack(logits, dim=-1), self.config.plain_read)

    def queries(self, x: Tensor, of: str = "memory_q_proj") -> Tensor:
        """(layers, N, H, r)."""
        config = self.config
        q: Tensor = self._product(x, of).unflatten(-1, (config.num_state_heads, config.rank))
        if config.normalize_qk:
            q = unit(torch.tanh(q))
        if config.read_gate:
            q = q * read_gate_above(self.read_gates(x), config.read_gate_floor).unsqueeze(-1)
        return q

    def reads(self, x: Tensor, states: Tensor, rows: ByRow) -> Tensor:
        """What is read at places, (N, layers, H, r).

        Args:
            x: of the places.
            states: (layers, B, H, r, r).
            rows: whose state is read at each.
        """
        q = self.queries(x)
        reads = rows.flat(torch.einsum("lbhij,bmlhj->bmlhi", states, rows.padded(q.transpose(0, 1))))
        return reads + self.of_base_state(x, q) if self.config.base_state else reads

    def of_base_state(self, x: Tensor, q: Tensor) -> Tensor:
        """What places x read of the base state, (N, layers, H, r), with their queries (layers, N, H, r) or others."""
        if self.config.base_queries:
            q = self.queries(x, "memory_base_proj")
        return torch.einsum("lhij,lnhj->nlhi", self._all("base_state"), q)

    def bent(self, hidden: Tensor, residuals: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Residuals (P, hidden size) with what is read at each place.

        Args:
            hidden: of the places, (layers, P, hidden size).
            residuals: (P, hidden size), of the last layer after its attention.
            states: (layers, B, H, r, r).
            rows: (P,), whose state is read at each.
        """
        by_row = ByRow(rows.to(self.device), states.shape[1])
        x = hidden.to(self.device).float()
        readers = [self, *map(self._of, later_readers(self.config))]
        found = [one.reads(x, states, by_row) for one in readers]
        if self.config.plain_read:
            found.append(self.plainly(x))
        bent = residuals.to(self.device).float() + self.added(x, *found)
        return bent + self.shares(x)[:, -1:] * self.chosen(x) if self.config.choices else bent

    def plainly(self, x: Tensor) -> Tensor:
        """What places x read without a query, (N, layers, H, r), with a `plain_read`."""
        heads = self.config.num_state_heads
        reads: Tensor = self._product(x, "plain_read_proj").unflatten(-1, (heads, -1)).transpose(0, 1)
        return reads

    def chosen(self, x: Tensor) -> Tensor:
        """What is chosen for places x of the table of all layers, (N, hidden size), where there is one."""
        return chosen(self.asked(x), *self._table())

    def asked(self, x: Tensor) -> Tensor:
        """What an entry of the table is looked up by at places x, (N, choice_rank)."""
        return self._product(x, "choice_proj").sum(0)

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        keys, bias = self._all("choice_keys").flatten(0, 1), self._all("choice_bias").flatten()
        return keys, bias, self._all("choice_values").transpose(0, 1).flatten(1)

    def _of(self, reader: Reader) -> Stacked:
        """The same layers with what a later reader asks with in the place of the first's."""
        there = {first: own for first, own in reader.instead.items() if hasattr(self._layers[0], own)}
        return Stacked(self._layers, self._stacks | {first: self._all(own) for first, own in there.items()})

    def added(self, x: Tensor, *reads: Tensor) -> Tensor:
        """`corrections` at places x, (N, hidden size), of what each reader read, and of what is read plainly, as far as
        gates of all layers, if there are such, let them through.
        """
        added = [self.corrections(of) for of in reads]
        if self.config.joint_gate:
            added = [of * share[:, None] for of, share in zip(added, self.shares(x).unbind(-1), strict=False)]
        return torch.stack(added).sum(0)

    def corrections(self, reads: Tensor) -> Tensor:
        """What all layers add to the output of the last attention, (N, hidden size), from reads (N, layers, H, r)."""
        config, flat = self.config, reads.flatten(2)
        if config.delta_o_rmsnorm or config.trainable_delta_scale:
            found = [layer.correction("o", flat[:, i]) for i, layer in enumerate(self._layers)]
            return torch.stack(found).sum(0)
        weights: Tensor = self._all("delta_o_proj").mT.flatten(0, 1)  # (layers * H * r, hidden size)
        scale: float = config.alpha / config.rank
        return scale * (flat.flatten(1) @ weights)

    @torch.no_grad()
    def heard(self, values: Tensor, directions: Tensor) -> Tensor:
        """How much of what each head reads is heard, (layers, H), in all 1.

        Args:
            values: that were written, (layers, n, H, r).
            directions: of their tokens (`Tail.directions`), (n, hidden size).
        """
        weights = self._all("delta_o_proj").unflatten(-1, values.shape[-2:])
        found = torch.einsum("ldhr,nd,lnhr->lh", weights, directions, values).clamp_min(0)
        return found / found.sum().clamp_min(1e-6)
