"""What happens during a call of the model: which mode, which tokens are padding, and each layer's state.

`Runtime` is the only mutable part of a memory. A session puts its state in before a call and takes it out after;
nothing here knows about conversations, files or text.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.attach import AttentionSite
from deltamem.call import Call, Directions
from deltamem.choices import chosen
from deltamem.errors import StateError
from deltamem.key_pairs import Lend, Lending, lent, lent_width, writes
from deltamem.layer import DeltaLayer
from deltamem.readers import heard, shares_of
from deltamem.running import Entry, RunningLayer, usable
from deltamem.token_steps import TokenSteps
from deltamem.told_aside import ToldAside

_REPLAYS_KEPT = 256
"""Entry states remembered per layer for gradient checkpointing; older ones belong to finished backwards."""


class Runtime:
    """The states of all layers while they are in use, and the rules for changing them.

    Args:
        sites: where the layers sit.
        weights: their adapter weights, in the same order.
    """

    def __init__(self, sites: list[AttentionSite], weights: list[DeltaLayer]) -> None:
        self.directions = Directions()
        self.trace: Callable[[int, Tensor], None] | None = None
        self.segment_counts: Tensor | None = None
        self._call: Call | None = None
        self._depth = 0
        config = weights[0].config
        self._segment_writes = config.writes_segments
        self._at_last, self._joint_gate = config.corrections == "last", config.joint_gate
        self._plain_read, self._choices = config.plain_read, config.choices > 0
        self._shape = (config.num_state_heads, config.rank, config.rank)
        self._layers = [RunningLayer(s, w, self._empty(w, 1)) for s, w in zip(sites, weights, strict=True)]
        self._steps: TokenSteps | None = None
        self._stepping = False
        self._aside = ToldAside(self._layers)
        self._lending = Lending(len(self._layers), config.fading) if config.keys == "pair" else None
        self._pinned: Tensor | None = None

    @property
    def layers(self) -> list[RunningLayer]:
        """The layers, with their states as they are now."""
        if self._steps is not None and self._steps.states is not None:
            states, self._steps.states = self._steps.states, None
            for layer, state in zip(self._layers, states, strict=True):
                layer.state = torch.from_numpy(state)[None]
            if self._lending is not None:
                self._lending.end()
                for i, last in enumerate(() if self._steps.lent is None else self._steps.lent):
                    self._lending.keep(i, torch.from_numpy(last)[None])
        return self._layers

    def _empty(self, weights: DeltaLayer, batch: int) -> Tensor:
        like = weights.memory_q_proj
        return torch.zeros(batch, *self._shape, device=like.device, dtype=like.dtype)

    def reset(self, batch_size: int) -> None:
        """Empty all states."""
        for layer in self.layers:
            layer.state = self._empty(layer.weights, batch_size)
            layer.segment_sum = None
        self.segment_counts = None
        self.end_message()

    def end_message(self) -> None:
        """The next token that is written has none before it."""
        if self._lending is not None:
            self._lending.end()
            if self._steps is not None:
                self._steps.lent = None

    @property
    def batch_size(self) -> int:
        """Sequences the states are for."""
        return self.layers[0].state.shape[0]

    # States that stay where they are, for calls that are recorded

    def pin(self) -> Tensor:
        """Put the states into one tensor, (L, B, H, r, r), the same one every time as long as it fits."""
        layers = self.layers
        first = layers[0].state
        if self._pinned is None or self._pinned.shape[1:] != first.shape or self._pinned.device != first.device:
            with torch.inference_mode(False):
                self._pinned = torch.empty(len(layers), *first.shape, device=first.device, dtype=first.dtype)
        for layer, own in zip(layers, self._pinned, strict=True):
            if layer.state.data_ptr() != own.data_ptr():
                own.copy_(layer.state)
                layer.state = own
        if self._lending is not None:
            self._lending.expect(first.new_zeros(len(first), lent_width(self._layers[0].weights.config)))
        return self._pinned

    def settle(self) -> None:
        """Move what a call wrote into the pinned tensor."""
        assert self._pinned is not None
        layers = self.layers
        torch.stack([layer.state for layer in layers], out=self._pinned)
        for layer, own in zip(layers, self._pinned, strict=True):
            layer.state = own

    @property
    def lending(self) -> Lending | None:
        """What is lent from call to call, with keys in pairs."""
        return self._lending

    def show_gates(self, gates: Tensor) -> None:
        """Have the write gates of all layers (L, B, T, H, r or 1) seen by whoever traces."""
        if self.trace is not None:
            for layer, own in zip(self._layers, gates, strict=True):
                self.trace(layer.site.number, own)

    # Segments across calls

    def open_segment(self) -> None:
        """Begin a segment; tokens of the following writing calls are gathered until it is closed."""
        if self.segment_counts is not None:
            raise StateError("a segment is open already; close it first")
        self.segment_counts = torch.zeros(self.batch_size, device=self.layers[0].state.device)

    def close_segment(self) -> None:
        """Write the mean of the gathered hidden states, and begin anew."""
        counts = self.segment_counts
        if counts is None:
            raise StateError("no segment is open")
        for layer in self.layers:
            if layer.segment_sum is not None:
                here = counts.to(layer.segment_sum.device)
                means = (layer.segment_sum / here.clamp_min(1)[:, None])[:, None]  # (B, 1, hidden)
                layer.state = layer.weights.write_means(
                    means, usable(layer.state), (here > 0)[:, None], self._tracing(layer)
                )
            layer.segment_sum = None
        self.segment_counts = None

    # During a call

    def begin(self, attention_mask: Any) -> None:
        """A call of the model begins (calls nest: the causal LM calls the decoder)."""
        if self._depth == 0:
            self._call = Call(self.directions, attention_mask)
            if self.directions.mode != "write":
                self.end_message()
        self._depth += 1

    def end(self, well: bool) -> None:
        """The innermost call ended, well or not."""
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            if well and self._call is not None:
                self._aside.write(self._call, self.trace)
            self._aside.drop()
            self._call = None
            if self._stepping:
                self._end_step(well)

    def enter_block(self, i: int, hidden: Tensor) -> None:
        """A decoder layer is entered in training; where it is checkpointed, keep the state it enters with.

        It is kept under the address of the layer's input: the recomputation runs outside any call of the model, on
        the very tensor the forward was given.
        """
        layer = self.layers[i]
        if self._call is None:
            self.recall(i, hidden)
        elif getattr(layer.site.block, "gradient_checkpointing", False):
            if self._at_last:
                # The last layer is worked out again before those whose reads it adds.
                raise StateError("corrections at the last layer can't be checkpointed; switch checkpointing off")
            key = hidden.data_ptr()
            lend = self._lend_again(i, self._call, hidden)
            layer.replays[key] = Entry(self._call, layer.state, self.segment_counts is not None, lend)
            layer.replays.move_to_end(key)
            while len(layer.replays) > _REPLAYS_KEPT:
                layer.replays.popitem(last=False)

    def recall(self, i: int, hidden: Tensor) -> None:
        """In a recomputation, find the state that the layer entered with."""
        layer = self.layers[i]
        if self._call is None and layer.replays:
            layer.replay = layer.replays.get(hidden.data_ptr(), layer.replay)

    def enter_attention(self, i: int, hidden: Tensor) -> None:
        """Hidden states (B, T, hidden) enter layer i's attention: read, and write where that is the mode."""
        if self._step(i, hidden):
            return
        layer = self.layers[i]
        replay, layer.replay = layer.replay if self._call is None else None, None
        if replay is not None:
            entry = replay
        else:
            call = self._call if self._call is not None else Call(self.directions)
            entry = Entry(call, layer.state, self.segment_counts is not None, self._lend(i, call))
        mode = entry.call.directions.mode
        if mode == "off":
            layer.reads = None
            return
        batch, tokens = hidden.shape[:2]
        if entry.state.shape[0] != batch:
            raise StateError(
                f"the state holds {entry.state.shape[0]} sequence(s) and the call has {batch}; "
                f"reset(batch_size={batch}) or give a state of that batch"
            )
        entry.call.prepare(batch, tokens, hidden.device, self._segment_writes)
        if layer.weights.memory_q_proj.device != hidden.device:
            layer.weights.to(hidden.device)  # the model was moved after attaching
        if mode == "write" and entry.call.mute and not self._segment_writes and not torch.is_grad_enabled():
            self._tell(i, hidden)
            return
        with ExitStack() as stack:
            if torch.is_autocast_enabled(hidden.device.type):
                stack.enter_context(torch.autocast(hidden.device.type, enabled=False))
            if entry.call.directions.local_gradient:
                stack.enter_context(torch.enable_grad())
                state = self._run(layer, entry, hidden.detach())
                assert layer.reads is not None
                layer.reads = layer.reads.detach()
            else:
                state = self._run(layer, entry, hidden)
            if self._joint_gate and not entry.call.mute:
                layer.joint = layer.weights.joint_logits(hidden)
                if self._choices:
                    layer.asked = F.linear(hidden.to(layer.weights.choice_proj.dtype), layer.weights.choice_proj)
        if entry.call.mute:
            layer.reads = None
        elif entry.call.silent is not None and layer.reads is not None:
            layer.reads = layer.reads.masked_fill(entry.call.silent[..., None], 0.0)
        if mode == "write" and replay is None:
            layer.state = state
            if i == 0 and self.segment_counts is not None:
                self._count(entry.call, batch, tokens)

    def _run(self, layer: RunningLayer, entry: Entry, hidden: Tensor) -> Tensor:
        call, weights = entry.call, layer.weights
        state = usable(entry.state).to(hidden.device)
        if call.directions.mode == "read":
            layer.reads = None if call.mute else weights.read(hidden, state, call.valid)
            return state
        if self._segment_writes and (call.plan is not None or entry.collecting):
            layer.reads = weights.read(hidden, state, call.valid)
            wide = hidden.to(weights.memory_q_proj.dtype)
            if call.plan is None:
                self._gather(layer, wide, call.gathered())
                return state
            means = call.plan.weights.to(wide.dtype) @ wide
            return weights.write_means(means, state, call.plan.valid, self._tracing(layer)) if means.shape[1] else state
        layer.reads, state = weights.read_and_write(
            hidden, state, call.valid, call.written, self._tracing(layer), entry.lend
        )
        return state

    # Keys in pairs

    def _lend(self, i: int, call: Call) -> Lend | None:
        """What lends to the keys of layer i in a call, once that is prepared."""
        lending = self._lending
        return None if lending is None else lambda keys: lending.lend(i, keys, writes(call.valid, call.written))

    def _lend_again(self, i: int, call: Call, hidden: Tensor) -> Lend | None:
        """The same for when the call is worked out again: what was lent at its beginning, and nothing kept."""
        if self._lending is None:
            return None
        first = self._lending.get(i, hidden)
        first = first if first is None else first.clone()
        fading = self._layers[i].weights.config.fading
        return lambda keys: lent(keys, first, writes(call.valid, call.written), fading)

    # Calls in which nothing reads

    def _tell(self, i: int, hidden: Tensor) -> None:
        """Keep what layer i is to write until there is more of it."""
        layer = self._layers[i]
        layer.reads = None
        with torch.autocast(hidden.device.type, enabled=False):
            products = layer.weights.told_products(hidden)
        assert self._call is not None
        if (lend := self._lend(i, self._call)) is not None:
            products = layer.weights.lend_to(products, lend)
        self._aside.add(i, products, self._call, self.trace)

    # Single tokens

    def _step(self, i: int, hidden: Tensor) -> bool:
        """A single token of a single sequence on a CPU goes the short way; false where this is something else."""
        call = self._call
        if call is None or call.directions.mode == "off" or torch.is_grad_enabled():
            return False
        if i == 0:
            self._stepping = hidden.shape[:2] == (1, 1) and hidden.device.type == "cpu" and self._can_step()
            if self._stepping:
                call.prepare(1, 1, hidden.device, segment_writes=False)
        if not self._stepping or call.single is None:
            return False
        assert self._steps is not None
        if call.single.reads:
            self._steps.read(i, hidden)
        else:
            self._steps.skip(i)
        if call.single.writes:
            self._steps.keep(hidden)
        return True

    def _can_step(self) -> bool:
        """Make `TokenSteps` where they can be used, and hand them the states."""
        if self._steps is None or not self._steps.hold():
            weights = [layer.weights for layer in self.layers]  # which takes the states back from the old ones
            self._steps = TokenSteps(weights) if TokenSteps.fit(weights) else None
            if self._steps is None:
                return False
        if self._steps.states is None:
            if self.batch_size != 1 or self._layers[0].state.requires_grad:
                return False
            self._steps.states = np.stack([layer.state[0].numpy() for layer in self._layers])
            if self._lending is not None:
                given = self._lending.given(self._layers[0].state)
                self._steps.lent = None if given is None else given[:, 0].numpy()
        return True

    def _end_step(self, well: bool) -> None:
        assert self._steps is not None
        self._stepping = False
        if not well:
            self._steps.drop()
            return
        gates = self._steps.write()
        if gates is not None and self.trace is not None:
            for layer, gate in zip(self._layers, torch.from_numpy(gates), strict=True):
                self.trace(layer.site.number, gate[None, None])

    def _tracing(self, layer: RunningLayer) -> Callable[[Tensor], None] | None:
        return None if self.trace is None else partial(self.trace, layer.site.number)

    def _gather(self, layer: RunningLayer, hidden: Tensor, valid: Tensor | None) -> None:
        kept = hidden if valid is None else hidden.masked_fill(~valid[..., None], 0.0)
        total = kept.sum(1)
        layer.segment_sum = total if layer.segment_sum is None else layer.segment_sum + total

    def _count(self, call: Call, batch: int, tokens: int) -> None:
        assert self.segment_counts is not None
        gathered = call.gathered()
        more = torch.full((batch,), tokens) if gathered is None else gathered.sum(-1)
        self.segment_counts = self.segment_counts + more.to(self.segment_counts.device)

    def bend(self, i: int, projection: str, output: Tensor) -> Tensor:
        """A projection of layer i returned: add its correction."""
        if self._stepping:
            assert self._steps is not None
            return self._steps.correct(i, projection, output)
        reading = [x for x in (self._layers if self._at_last else self._layers[i : i + 1]) if x.reads is not None]
        shares = self._shares(reading) if self._joint_gate and reading else None
        for layer in reading:
            assert layer.reads is not None
            reads = layer.reads if shares is None else heard(layer.reads, shares.to(layer.reads.device))
            output = output + layer.weights.correction(projection, reads).to(output.device, output.dtype)
        if self._choices and shares is not None:
            output = output + self._chosen(reading, shares[..., -1:]).to(output.device, output.dtype)
        return output

    def _chosen(self, reading: list[RunningLayer], share: Tensor) -> Tensor:
        """What the table of all layers adds, (B, T, out_features), where it is heard."""
        assert self._call is not None
        call, device = self._call, share.device
        quiet = [mask for mask in (call.silent, None if call.valid is None else ~call.valid) if mask is not None]
        for mask in quiet:
            share = share.masked_fill(mask.to(device)[..., None], 0.0)
        asked = torch.stack([layer.asked.to(device) for layer in reading if layer.asked is not None]).sum(0)
        tables = [(w.choice_keys, w.choice_bias, w.choice_values) for w in (layer.weights for layer in reading)]
        keys, bias, values = zip(*tables, strict=True)
        table = [torch.cat([p.to(device) for p in part], dim=d) for part, d in ((keys, 0), (bias, 0), (values, 1))]
        return share * chosen(asked, *table)

    def _shares(self, reading: list[RunningLayer]) -> Tensor:
        """What each of a layer's reads counts for (`shares_of`), (B, T, n), by all layers together."""
        parts = [layer.joint for layer in reading if layer.joint is not None]
        return shares_of(torch.stack([part.to(parts[0].device) for part in parts]).sum(0), self._plain_read)
