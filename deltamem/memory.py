"""`DeltaMemory`: the handle on a backbone with memory.

    memory = DeltaMemory.from_pretrained(model, "adapter-dir")
    with memory.writing():
        model(input_ids=ids)

It puts the hooks on, keeps the adapter's weights and the state in use, and says how the next calls are run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltamem.adapter import layer_tensors, load_adapter, save_adapter
from deltamem.attach import Hooks, dense_weight, find_sites
from deltamem.call import Directions
from deltamem.config import PROJECTIONS, DeltaMemConfig
from deltamem.errors import AttachError, StateError
from deltamem.key_pairs import Lending
from deltamem.layer import DeltaLayer
from deltamem.runtime import Runtime
from deltamem.state import MemoryState, OpenSegment

_MARK = "_deltamem_memory"


class DeltaMemory:
    """δ-mem on one loaded Hugging Face causal language model.

    Make one with `attach` (fresh weights) or `from_pretrained` (an adapter on disk). A call of the model outside
    the three modes reads. The backbone's weights are never changed, and `detach` leaves the model as it was.

    Attributes:
        model: the backbone.
        config: the adapter's configuration.
        adapter: the adapter's weights, one `DeltaLayer` per adapted layer.
    """

    def __init__(self, model: nn.Module, config: DeltaMemConfig, layers: list[DeltaLayer]) -> None:
        if getattr(model, _MARK, None) is not None:
            raise AttachError("this model has a memory attached already; detach() that one first")
        self.model = model
        self.config = config
        self._sites = find_sites(model, config)
        self.adapter = nn.ModuleList(layers)
        self._runtime = Runtime(self._sites, layers)
        self._hooks = Hooks()
        self._watches_blocks = False
        self._put_hooks()
        setattr(model, _MARK, self)

    # Making one

    @classmethod
    def attach(cls, model: nn.Module, config: DeltaMemConfig | None = None) -> DeltaMemory:
        """Attach with fresh weights, for training.

        Raises:
            AttachError: the model lacks what the configuration asks for.
        """
        config = config or DeltaMemConfig()
        layers = []
        for site in find_sites(model, config):
            layer = DeltaLayer(config, site.hidden_size, site.out_features)
            for name in PROJECTIONS:
                _init_correction(layer, name, site.projection(name))
            layers.append(layer.to(_device_of(site.projection("q"))))
        return cls(model, config, layers)

    @classmethod
    def from_pretrained(cls, model: nn.Module, name_or_path: str | Path) -> DeltaMemory:
        """Attach and load an adapter from a directory or a hub id, in either layout.

        Raises:
            AdapterError: it is damaged, or was made for another backbone; the message says what differs.
            AttachError: the model lacks what the adapter asks for.
        """
        config, tensors = load_adapter(name_or_path)
        sites = find_sites(model, config)
        layers = []
        for site, own in zip(sites, layer_tensors(config, tensors, sites, str(name_or_path)), strict=True):
            layer = DeltaLayer(config, site.hidden_size, site.out_features)
            layer.load_state_dict(own)
            layers.append(layer.to(_device_of(site.projection("q"))))
        memory = cls(model, config, layers)
        memory.adapter.requires_grad_(False)
        return memory

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the adapter in the native layout."""
        save_adapter(directory, self.config, self.adapter_tensors())

    def adapter_tensors(self) -> dict[str, Tensor]:
        """All adapter tensors under their published names, float32 on the CPU."""
        return {
            f"{site.path}.{name}": value.detach().float().cpu().clone()
            for site, layer in zip(self._sites, self.adapter, strict=True)
            for name, value in layer.state_dict().items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, which are all there is to train."""
        return list(self.adapter.parameters())

    @property
    def last_block(self) -> nn.Module:
        """The decoder layer around the last adapted attention."""
        return self._sites[-1].block

    # State

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Indices of the adapted layers in the backbone."""
        return tuple(site.number for site in self._sites)

    @property
    def paths(self) -> tuple[str, ...]:
        """Module paths of the adapted attentions, in the same order."""
        return tuple(site.path for site in self._sites)

    @property
    def state(self) -> MemoryState:
        """The state in use, with its gradient history where it has one; `clone` it to keep it."""
        layers = self._runtime.layers
        device = layers[0].state.device
        tensor = torch.stack([layer.state.to(device) for layer in layers])
        counts = self._runtime.segment_counts
        segment = None
        if counts is not None:
            empty = [torch.zeros(tensor.shape[1], s.hidden_size, device=device) for s in self._sites]
            sums = [e if y.segment_sum is None else y.segment_sum for e, y in zip(empty, layers, strict=True)]
            segment = OpenSegment(tuple(sums), counts)
        return MemoryState(tensor, self.layer_indices, segment)

    @state.setter
    def state(self, state: MemoryState) -> None:
        runtime, config = self._runtime, self.config
        if state.layers != self.layer_indices:
            raise StateError(f"the state is of layers {list(state.layers)}, the adapter of {list(self.layer_indices)}")
        if tuple(state.tensor.shape[2:]) != (config.num_state_heads, config.rank, config.rank):
            raise StateError(
                f"the state has heads, r, r = {tuple(state.tensor.shape[2:])}, "
                f"the adapter {(config.num_state_heads, config.rank, config.rank)}"
            )
        for i, layer in enumerate(runtime.layers):
            # A copy, so that in-place work on the caller's tensor never reaches a running conversation.
            layer.state = state.tensor[i].to(layer.weights.memory_q_proj).clone()
            layer.segment_sum = state.segment.sums[i] if state.segment is not None else None
        runtime.segment_counts = state.segment.counts if state.segment is not None else None
        runtime.end_message()

    def reset(self, batch_size: int = 1) -> None:
        """Empty the state for a number of sequences."""
        self._runtime.reset(batch_size)

    def pin_state(self) -> Tensor:
        """Keep the state in one tensor (layers, B, H, r, r) whose address stays, for calls that are recorded.

        Setting a state, or resetting, takes it out of there; `pin_state` puts it back and gives the same tensor.
        """
        return self._runtime.pin()

    @property
    def lending(self) -> Lending | None:
        """What tokens lend to the keys of the next, where keys are in pairs."""
        return self._runtime.lending

    def settle_state(self) -> None:
        """Move what the last call wrote to where `pin_state` put the state."""
        self._runtime.settle()

    # Modes

    def writing(
        self,
        segments: Tensor | None = None,
        padding: Tensor | None = None,
        written: Tensor | None = None,
        local_gradient: bool = False,
        reads: Tensor | None = None,
    ) -> _Mode:
        """Calls inside read and write.

        Args:
            segments: (B, T) segment number of each token, -1 for none (SSW; other adapters ignore it).
            padding: (B, T), true where a token is padding; otherwise taken from the call's attention mask.
            written: (B, T), false where a token is to read but not to write (a system prompt, say).
            local_gradient: for training. The state carries gradient to the weights that wrote it, and none goes
                through the backbone, so the call itself can run under `torch.no_grad()` at a third of the cost.
            reads: (B, T), true for tokens that belong to a reply, and the one before it. An adapter whose
                configuration says ``reads: reply`` reads at no others; the rest pay it no attention.
        """
        mine = reads if self.config.reads == "reply" else None
        return _Mode(self._runtime, Directions("write", segments, padding, written, local_gradient, mine))

    def reading(self, padding: Tensor | None = None, reads: Tensor | None = None) -> _Mode:
        """Calls inside read and leave the state as it is; `padding` and `reads` are those of `writing`."""
        mine = reads if self.config.reads == "reply" else None
        return _Mode(self._runtime, Directions("read", padding=padding, reads=mine))

    def disabled(self) -> _Mode:
        """Calls inside are the frozen backbone's, bit for bit."""
        return _Mode(self._runtime, Directions("off"))

    def open_segment(self) -> None:
        """Begin a segment that spans calls (SSW).

        Raises:
            StateError: one is open already.
        """
        self._runtime.open_segment()

    def close_segment(self) -> None:
        """Write the open segment's mean into the state.

        Raises:
            StateError: none is open.
        """
        self._runtime.close_segment()

    @contextmanager
    def segment(self) -> Iterator[None]:
        """Open a segment, and close it when the block ends without an error."""
        self.open_segment()
        yield
        self.close_segment()

    # Hooks

    def watch(self, seen: Callable[[int, Tensor], None]) -> Callable[[], None]:
        """Have `seen` called with (position in `layer_indices`, hidden states entering that attention).

        Returns:
            A function that ends it.
        """
        hooks = Hooks()
        for i, site in enumerate(self._sites):
            hooks.on_attention(site, partial(seen, i), lambda _name, output: output, ())
        return hooks.remove

    @contextmanager
    def tracing(self, seen: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Have `seen` called with (number of the layer, write gates (B, T, H, r or 1)) of everything written inside."""
        before, self._runtime.trace = self._runtime.trace, seen
        try:
            yield
        finally:
            self._runtime.trace = before

    def show_gates(self, gates: Tensor) -> None:
        """Have write gates (layers, B, T, H, r or 1) seen as `tracing` shows those of a call."""
        self._runtime.show_gates(gates)

    def _put_hooks(self) -> None:
        runtime, at_last = self._runtime, self.config.corrections == "last"
        decoder = getattr(self.model, "base_model", None)
        for module in {id(m): m for m in (self.model, decoder) if isinstance(m, nn.Module)}.values():
            self._hooks.on_call(module, self._begin, runtime.end)
        for i, site in enumerate(self._sites):
            bent = self.config.delta_heads if not at_last or i == len(self._sites) - 1 else ()
            self._hooks.on_attention(site, partial(runtime.enter_attention, i), partial(runtime.bend, i), bent)

    def _begin(self, attention_mask: Any) -> None:
        if not self._watches_blocks and self._sites[0].block.training:
            # Only training can be checkpointed; a hook on every module of every layer would slow decoding.
            self._watches_blocks = True
            for i, site in enumerate(self._sites):
                self._hooks.on_block(site, partial(self._runtime.enter_block, i), partial(self._runtime.recall, i))
        self._runtime.begin(attention_mask)

    def detach(self) -> None:
        """Take the memory off; the model is as it was before."""
        self._hooks.remove()
        if getattr(self.model, _MARK, None) is self:
            delattr(self.model, _MARK)


class _Mode:
    """Context manager that sets the directions of the calls inside it; nests, and may be used again."""

    def __init__(self, runtime: Runtime, directions: Directions) -> None:
        self._runtime = runtime
        self._directions = directions
        self._before: list[Directions] = []

    def __enter__(self) -> None:
        self._before.append(self._runtime.directions)
        self._runtime.directions = self._directions

    def __exit__(self, *_: object) -> None:
        self._runtime.directions = self._before.pop()


def _device_of(module: nn.Module) -> torch.device:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.device


def _init_correction(layer: DeltaLayer, name: str, projection: nn.Module) -> None:
    """Start a correction matrix as `output_init` says; one that is not enabled stays zero."""
    config = layer.config
    if name not in config.delta_heads or config.output_init == "zero":
        return
    matrix: nn.Parameter = getattr(layer, f"delta_{name}_proj")
    with torch.no_grad():
        if config.output_init == "random":
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5)).mul_(config.online_gain)
            return
        columns = config.rank
        if config.output_init == "base_slice_fixed":
            columns = min(config.base_slice_ref_width, config.rank)
        columns = min(columns, int(projection.in_features))  # type: ignore[arg-type]
        first = dense_weight(projection)[:, :columns].to(matrix)
        matrix[:, :columns] = first / first.norm(dim=0, keepdim=True).clamp_min(1e-12) * config.online_gain
