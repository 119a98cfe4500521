"""One token of one sequence on a CPU, in numpy.

A layer's work for a token is a few thousand multiplications. What it costs is calling, and a call costs several times
more in the middle of a model, whose weights have just gone through the cache, than in a loop of its own. So a layer
does in its place only what the rest of the model waits for, its read, in as few calls as can be; the writes of all
layers are done side by side when the token is through. Each token reads before it writes, so that changes nothing.

The numbers are those of `DeltaLayer.read_and_write`, float32 throughout (tests/test_token_steps.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltamem.layer import UNIT_EPS, DeltaLayer
from deltamem.readers import later_readers, shared_out

Array = NDArray[np.float32]


class TokenSteps:
    """All layers' weights as numpy sees them, and their states while single tokens pass.

    The projections of all layers are put into one tensor, and the layers' parameters become views of it: training
    them further changes what is used here.

    Args:
        layers: on the CPU, in float32, of one shape.

    Attributes:
        states: (L, H, r, r); None while the layers' own states count.
        lent: (L, n), what the last token lends to the key of the next, with keys in pairs; None for nothing.
    """

    def __init__(self, layers: Sequence[DeltaLayer]) -> None:
        config = self._config = layers[0].config
        self._ends = (layers[0], layers[-1])
        heads, rank = self._heads = (config.num_state_heads, config.rank)
        width = heads * rank
        gate = ["read_gate_proj"] if config.read_gate else []
        free = ["lambda_proj"] if config.needs_lambda else []
        base = ["memory_base_proj"] if config.base_queries else []
        erase = ["erase_proj"] if config.learned_erase else []
        joint = ["joint_gate_proj"] if config.joint_gate else []
        later = later_readers(config)
        others = [reader.instead[name] for reader in later for name in ("memory_q_proj", *gate)]
        joint += [name for r in later for name in (r.instead["joint_gate_proj"], f"{r.route}_proj")]
        plain = ["plain_read_proj"] if config.plain_read else []
        asking = ["memory_q_proj", *gate, *base, *others, *plain, *joint]
        projections = _fuse(layers, [*asking, "memory_k_proj", "memory_v_proj", "beta_proj", *free, *erase])
        self._where = self._places()
        base_at = width + (heads if config.read_gate else 0)
        self._base_rows = slice(base_at, base_at + width)
        split = sum(len(getattr(layers[0], name)) for name in asking)
        # Later readers' rows follow at once: with those the base state has no queries of its own.
        self._begins = [n * base_at for n in range(1 + len(later))]
        self._reading = list(projections[:, :split])
        self._writing = projections[:, split:]
        self._read_bias = list(_fuse(layers, ["read_gate_bias"])) if config.read_gate else None
        biases = ["joint_gate_bias", *(name for r in later for name in ("joint_gate_bias", f"{r.route}_bias"))]
        self._joint_biases = {name: _fuse(layers, [name]) for name in biases} if config.joint_gate else {}
        self._biased = biases if config.joint_gate else []
        self._plain_at = split - len(joint) - width if config.plain_read else None
        self._joint = [[0.0] * len(joint)] * len(layers)
        self._beta_bias = _fuse(layers, ["beta_bias"])
        self._lambda_bias = _fuse(layers, ["lambda_bias"]) if config.needs_lambda else None
        self._erase_bias = _fuse(layers, ["erase_bias"]) if config.learned_erase else None
        self._corrections = {
            p: [getattr(layer, f"delta_{p}_proj").detach().numpy() for layer in layers] for p in config.delta_heads
        }
        self._scale = config.alpha / rank
        if config.corrections == "last":
            self._corrections = {"o": [np.concatenate(self._corrections["o"], axis=1)]}
        self._base = _fuse(layers, ["base_state"]) if config.base_state else None
        self._with_base: tuple[Array, Array] | None = None  # the states, and what is read where they are
        self._reads: list[list[tuple[Array, float] | None]] = [[None] * (len(self._begins) + len(plain))] * len(layers)
        self._seen: list[Array] = []
        self._table = _Table(layers) if config.choices else None
        self._heard = 0.0
        self.states: Array | None = None
        self.lent: Array | None = None

    @staticmethod
    def fit(layers: Sequence[DeltaLayer]) -> bool:
        """Whether these layers can be done here: all but normalised and learned-scale corrections, and all alike."""
        config = layers[0].config
        return not (config.writes_segments or config.delta_o_rmsnorm or config.trainable_delta_scale) and all(
            layer.memory_q_proj.device.type == "cpu"
            and layer.memory_q_proj.dtype == torch.float32
            and layer.hidden_size == layers[0].hidden_size
            for layer in layers
        )

    def hold(self) -> bool:
        """False when the layers' weights have moved since."""
        return self._where == self._places()

    def _places(self) -> tuple[int, ...]:
        return tuple(layer.memory_q_proj.data_ptr() for layer in self._ends)

    # A token

    def read(self, i: int, x: Tensor) -> None:
        """Layer i reads the state for hidden states x of one token; `correct` then has its effect."""
        assert self.states is not None
        found = self._reading[i].dot(_flat(x))
        numbers = found.tolist()
        if self._biased:
            self._joint[i] = numbers[-len(self._biased) :]
        self._reads[i] = [self._read(i, numbers, begin) for begin in self._begins]
        if (at := self._plain_at) is not None:
            self._reads[i].append((found[at : at + math.prod(self._heads)], self._scale))
        if self._table is not None:
            self._table.asks(i, _flat(x))

    def _read(self, i: int, numbers: list[float], at: int) -> tuple[Array, float] | None:
        """What a reader reads whose query and gates stand there, and what to multiply it by; None for nothing."""
        heads, rank = self._heads
        width = heads * rank
        gates = [1.0] * heads
        if self._read_bias is not None:
            biased = map(operator.add, numbers[at + width : at + width + heads], self._read_bias[i].tolist())
            gates = list(map(self._opened, biased))
            if not any(gates):
                return None
        found, scale = self._asked(numbers[at : at + width], gates, self._readable()[i])
        if self._config.base_queries:
            assert self._base is not None
            of_base, its = self._asked(numbers[self._base_rows], gates, self._base[i])
            found, scale = found * np.float32(scale) + of_base * np.float32(its), 1.0
        return found, scale * self._scale

    def _asked(self, rows: list[float], gates: list[float], state: Array) -> tuple[Array, float]:
        """What a query that is not normalised yet reads of a state (H, r, r), (H * r), and what to multiply that by."""
        heads, rank = self._heads
        shares = gates
        if self._config.normalize_qk:
            # For eight numbers the plain functions are quicker than an array's. Reads are linear in the query: its
            # length and its gate wait until after the product.
            rows = list(map(math.tanh, rows))
            lengths = [max(math.hypot(*rows[at : at + rank]), UNIT_EPS) for at in range(0, heads * rank, rank)]
            shares = [gate / length for gate, length in zip(gates, lengths, strict=True)]
        query = np.array(rows, np.float32)
        if heads == 1:
            return state[0].dot(query), shares[0]
        found = (state @ query.reshape(heads, rank, 1))[..., 0]
        return (found * np.array(shares, np.float32)[:, None]).ravel(), 1.0

    def _opened(self, gate: float) -> float:
        """A read gate from its logit."""
        floor = self._config.read_gate_floor
        return max(0.0, 0.5 + 0.5 * math.tanh(0.5 * gate) - floor) / (1 - floor)

    def _readable(self) -> Array:
        """What reads see, (L, H, r, r): the states, with the base states where there are such."""
        assert self.states is not None
        if self._base is None or self._config.base_queries:
            return self.states
        if self._with_base is None or self._with_base[0] is not self.states:
            self._with_base = self.states, self.states + self._base
        return self._with_base[1]

    def skip(self, i: int) -> None:
        """Layer i reads nothing for this token."""
        self._reads[i] = [None] * len(self._reads[i])

    def correct(self, i: int, projection: str, output: Tensor) -> Tensor:
        """A projection's output with what was read added."""
        found, at = (self._together(), 0) if self._config.corrections == "last" else (self._reads[i][0], i)
        if found is None:
            return output
        reads, scale = found
        delta = torch.from_numpy(self._corrections[projection][at].dot(reads))
        if output.dtype != torch.float32:
            delta = delta.to(output.dtype)
        output = torch.add(output, delta, alpha=scale)
        if self._table is None:
            return output
        return output + torch.from_numpy(self._table.answers(self._heard)).to(output.dtype)

    def _together(self) -> tuple[Array, float] | None:
        """What all layers read, one after the other; None where none did."""
        shares = self._shares()
        self._heard = shares[-1]
        each = [[found if share else None for found, share in zip(of, shares, strict=True)] for of in self._reads]
        if not any(any(of) for of in each):
            return None
        heads, rank = self._heads
        read = np.zeros((len(each), heads * rank), np.float32)
        for row, of in zip(read, each, strict=True):
            for found, share in zip(of, shares, strict=True):
                if found is not None:
                    row += found[0] * np.float32(found[1] * share)
        return read.ravel(), 1.0

    def _shares(self) -> list[float]:
        """`shares_of` all layers' joint logits, or 1."""
        if not self._biased:
            return [1.0]
        biases = [float(self._joint_biases[name].sum()) for name in self._biased]
        logits = map(operator.add, map(sum, zip(*self._joint, strict=True)), biases)
        opened = [min(1.0, max(0.0, 0.5 + 0.5 * logit)) for logit in logits]
        return shared_out(opened, self._config.plain_read)

    def keep(self, x: Tensor) -> None:
        """The next layer's hidden states are to be written when the token is through."""
        self._seen.append(_flat(x))

    def drop(self) -> None:
        """The token did not get through: nothing is written."""
        self._seen = []

    def write(self) -> Array | None:
        """Write what was kept, if anything was.

        Returns:
            The write gates, (L, H, r) or (L, H, 1), 0 to 1.
        """
        seen, self._seen = self._seen, []
        first, self.lent = self.lent, None
        if not seen or self.states is None:
            return None
        config, (heads, rank) = self._config, self._heads
        width, count = heads * rank, len(seen)
        z = (self._writing @ np.stack(seen)[..., None])[..., 0]  # (L, rows)
        raw, at = z[:, :width], 2 * width + self._beta_bias.shape[1]
        beta = _sigmoid(z[:, 2 * width : at] + self._beta_bias).reshape(count, heads, -1)
        if floor := config.write_gate_floor:
            beta = np.maximum(beta - np.float32(floor), 0) / np.float32(1 - floor)
        if config.keys == "pair":
            self.lent = raw
            if config.fading:
                self.lent = raw if first is None else raw + np.float32(config.fading) * first
                raw = np.float32(config.own_share) * raw
            elif config.own_share < 1:
                self.lent = np.concatenate([raw, beta.mean((1, 2))[:, None]], axis=1)
                own = 1 if first is None else 1 - np.float32(1 - config.own_share) * first[:, width:]
                raw = own * raw
            raw = raw if first is None else raw + first[:, :width]
        key, value = raw.reshape(count, heads, rank), z[:, width : 2 * width].reshape(count, heads, rank)
        if config.normalize_qk:
            key = np.tanh(key)
            key = key / np.maximum(np.sqrt((key * key).sum(-1, keepdims=True)), np.float32(UNIT_EPS))
        kept, erase = self.states, beta
        if config.state_update_mode != "no_lambda":
            lam = 1 - beta
            if self._lambda_bias is not None:
                lam = _sigmoid(z[:, at : at + self._lambda_bias.shape[1]] + self._lambda_bias).reshape(count, heads, -1)
            kept = lam[..., None] * self.states
            erase = lam * beta if config.state_update_mode == "lambda_outside" else beta
        if self._erase_bias is not None:
            erase = erase * (2 * _sigmoid(z[:, -heads:] + self._erase_bias))[..., None]
        held = (self.states @ key[..., None])[..., 0]
        self.states = kept + (beta * value - erase * held)[..., None] * key[:, :, None]
        return beta


class _Table:
    """What all layers choose among together (`choices.chosen`)."""

    def __init__(self, layers: Sequence[DeltaLayer]) -> None:
        names = ("choice_proj", "choice_keys", "choice_bias", "choice_values")
        self._proj, self._keys, self._bias, self._values = (_fuse(layers, [name]) for name in names)
        self._asked: list[Array] = [np.zeros(0, np.float32)] * len(layers)

    def asks(self, i: int, x: Array) -> None:
        """Keep what layer i sees: it is looked at when all have seen theirs, if it is heard at all."""
        self._asked[i] = x

    def answers(self, share: float) -> Array:
        """What is added, (out_features,)."""
        asked = (self._proj @ np.stack(self._asked)[..., None])[..., 0].sum(0)
        logits = self._keys @ asked + self._bias  # (L, entries)
        most = max(0.0, float(logits.max()))
        each = np.exp(logits - np.float32(most))
        each *= np.float32(share / (math.exp(-most) + float(each.sum())))
        found: Array = (self._values @ each[..., None])[..., 0].sum(0)
        return found


def _fuse(layers: Sequence[DeltaLayer], names: Sequence[str]) -> Array:
    """The layers' tensors of these names one under the other, (L, rows, ...); the parameters become views of it."""
    with torch.inference_mode(False), torch.no_grad():
        fused = torch.stack([torch.cat([getattr(layer, name).detach() for name in names]) for layer in layers])
        for layer, own in zip(layers, fused, strict=True):
            at = 0
            for name in names:
                parameter = getattr(layer, name)
                parameter.data = own[at : at + len(parameter)]
                at += len(parameter)
        array: Array = fused.numpy()
        return array


def _flat(x: Tensor) -> Array:
    array: Array = (x if x.dtype == torch.float32 else x.float()).numpy()
    return array.reshape(-1)


def _sigmoid(x: Array) -> Array:
    # By the hyperbolic tangent: an exponential would overflow, with a warning, for gates that are shut.
    gate: Array = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)
    return gate
