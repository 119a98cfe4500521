"""More state heads beside those that an adapter has.

The heads that are there stay as they are. Each new one gets their gates, which know what is worth writing and when to
read, and keys, queries and values of its own that are fitted as a fresh adapter's are: facts that lie close to each
other in one head need not in another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltamem.config import PROJECTIONS
from deltamem.memory import DeltaMemory
from deltamem.training.warm_start import delta_layers

_HEARD = 0.3
"""How loud the new heads are at first, of what fresh ones would be: what they say is rough, and the old ones are heard
beside them."""


def put_heads_back(memory: DeltaMemory, before: DeltaMemory) -> None:
    """Give the first heads of a fitted memory the weights they had, and the new ones the gates of those.

    Args:
        memory: whose adapter is changed; the number of its heads is a multiple of what it was.
        before: the same adapter with fewer heads; detached from the backbone by now.
    """
    with torch.no_grad():
        for layer, old in zip(delta_layers(memory), delta_layers(before), strict=True):
            width = len(old.memory_q_proj)
            base = ["memory_base_proj"] if before.config.base_queries else []
            for name in ("memory_q_proj", "memory_k_proj", "memory_v_proj", *base):
                getattr(layer, name)[:width] = getattr(old, name)
            for p in PROJECTIONS:
                correction: Tensor = getattr(layer, f"delta_{p}_proj")
                correction *= _HEARD
                correction[:, :width] = getattr(old, f"delta_{p}_proj")
            gates = ["beta_proj", "beta_bias"]
            gates += ["lambda_proj", "lambda_bias"] if memory.config.needs_lambda else []
            gates += ["read_gate_proj", "read_gate_bias"] if memory.config.read_gate else []
            gates += ["erase_proj", "erase_bias"] if before.config.learned_erase else []
            times = memory.config.num_state_heads // before.config.num_state_heads
            for name in gates:
                gate: Tensor = getattr(old, name)
                getattr(layer, name).copy_(gate.repeat(times, *[1] * (gate.dim() - 1)))
            if memory.config.base_state:
                layer.base_state.zero_()
                if before.config.base_state:
                    layer.base_state[: before.config.num_state_heads] = old.base_state
            for name in ("delta_o_rmsnorm_weight", "delta_scale_raw"):
                if hasattr(old, name):
                    getattr(layer, name).copy_(getattr(old, name))
