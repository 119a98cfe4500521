"""Finding a backbone's attention layers and putting hooks on their projections.

The adapter never edits the model: hooks see the hidden states that enter an attention module and bend what its
q, k, v and o projections return. Nothing is replaced, so `state_dict`, quantized weights and any attention
implementation stay as they are, and taking the hooks off gives the model back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deltamem.config import PROJECTIONS, DeltaMemConfig
from deltamem.errors import AttachError


class AttentionSite(NamedTuple):
    """One attention module that a memory layer sits beside.

    Attributes:
        number: the layer's number in the backbone.
        path: module path, e.g. ``model.layers.0.self_attn``; it names the adapter's tensors.
        attention: the attention module.
        block: the decoder layer around it.
        hidden_size: width of what enters the attention.
        out_features: output width of each projection.
    """

    number: int
    path: str
    attention: nn.Module
    block: nn.Module
    hidden_size: int
    out_features: dict[str, int]

    def projection(self, name: str) -> nn.Module:
        """The projection module "q", "k", "v" or "o"."""
        return self.attention.get_submodule(f"{name}_proj")


def find_sites(model: nn.Module, config: DeltaMemConfig) -> list[AttentionSite]:
    """All attention modules the configuration adapts, in layer order.

    Raises:
        AttachError: there is no such module, one lacks a projection, or a target layer does not exist.
    """
    wanted = config.target_modules[0]
    found = []
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        stack, _, number = parent.rpartition(".")
        # Decoder layers live in a numbered list; vision towers of multimodal models are left alone.
        if name == wanted and number.isdigit() and "vision" not in stack and "audio" not in stack:
            found.append((int(number), path, module, model.get_submodule(parent)))
    kind = type(model).__name__
    if not found:
        raise AttachError(
            f"{kind} has no decoder layers with an attention module called {wanted!r}; δ-mem needs separate "
            f"q_proj, k_proj, v_proj and o_proj in each layer"
        )
    sites = [_site(kind, *entry) for entry in sorted(found, key=lambda entry: entry[0])]
    if not config.target_layers:
        return sites
    by_index = {site.number: site for site in sites}
    missing = [i for i in config.target_layers if i not in by_index]
    if missing:
        raise AttachError(f"{kind} has {len(sites)} layers; target_layers asks for {missing}")
    return [by_index[i] for i in sorted(config.target_layers)]


def _site(kind: str, number: int, path: str, attention: nn.Module, block: nn.Module) -> AttentionSite:
    missing = [f"{p}_proj" for p in PROJECTIONS if not hasattr(attention, f"{p}_proj")]
    if missing:
        raise AttachError(
            f"{kind} can't be adapted: its attention {path} has no {', '.join(missing)} "
            f"(δ-mem needs separate q, k, v and o projections)"
        )
    projections = {p: getattr(attention, f"{p}_proj") for p in PROJECTIONS}
    for name, module in projections.items():
        if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
            raise AttachError(f"{kind} can't be adapted: {path}.{name}_proj is not a linear projection")
    out = {p: int(m.out_features) for p, m in projections.items()}
    return AttentionSite(number, path, attention, block, int(projections["q"].in_features), out)


def dense_weight(module: nn.Module) -> Tensor:
    """A projection's weight (out_features, in_features) in float32, unpacked where it is quantized."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if weight.is_floating_point() and weight.dim() == 2 and weight.shape[0] == module.out_features:
        return weight.detach().float()
    # Any quantized linear layer multiplies: its response to the identity is its weight.
    in_features = int(module.in_features)  # type: ignore[arg-type]
    dtype = getattr(module, "compute_dtype", None) or torch.float32
    eye = torch.eye(in_features, device=weight.device, dtype=dtype)
    with torch.no_grad():
        out: Tensor = module(eye) - module(torch.zeros_like(eye))
    return out.T.float()


class Hooks:
    """The hooks one memory has on one model, removable together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def on_call(self, model: nn.Module, before: Callable[[Any], None], after: Callable[[bool], None]) -> None:
        """Watch whole calls of the model: `before` gets the attention mask, `after` whether it ended well."""

        def pre(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            before(kwargs.get("attention_mask", args[1] if len(args) > 1 else None))

        def post(_module: nn.Module, _args: Any, output: Any) -> None:
            after(output is not None)

        self._handles.append(model.register_forward_pre_hook(pre, with_kwargs=True))
        self._handles.append(model.register_forward_hook(post, always_call=True))

    def on_block(self, site: AttentionSite, enter: Callable[[Tensor], None], inside: Callable[[Tensor], None]) -> None:
        """In training, watch what enters a decoder layer, and what enters the modules right inside it.

        Where the layer is checkpointed its own hooks run once, outside the checkpoint, and those of the modules
        inside run again in the recomputation; the first of them is given the layer's own input.
        """

        def watch(module: nn.Module, seen: Callable[[Tensor], None]) -> None:
            def pre(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if site.block.training:
                    hidden = args[0] if args else kwargs.get("hidden_states")
                    if isinstance(hidden, Tensor):
                        seen(hidden)

            self._handles.append(module.register_forward_pre_hook(pre, with_kwargs=True))

        watch(site.block, enter)
        for module in site.block.children():
            watch(module, inside)

    def on_attention(
        self,
        site: AttentionSite,
        enter: Callable[[Tensor], None],
        bend: Callable[[str, Tensor], Tensor],
        projections: Sequence[str],
    ) -> None:
        """Hand hidden states entering the attention to `enter`, and the outputs of some projections to `bend`."""

        def pre(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(hidden, Tensor):
                raise AttachError(f"{site.path} was called without hidden states")
            enter(hidden)

        self._handles.append(site.attention.register_forward_pre_hook(pre, with_kwargs=True))
        for name in projections:

            def post(_module: nn.Module, _args: Any, output: Tensor, name: str = name) -> Tensor:
                return bend(name, output)

            self._handles.append(site.projection(name).register_forward_hook(post))

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
