"""8-bit weights on a CPU: a quarter of the bytes that making a token has to read.

Only weights are rounded, one scale a row; what enters a layer stays in bfloat16. PyTorch's dynamic quantization, which
rounds activations to 7 bits as well, is as fast and ruins small models (benchmarks/speed.md has the figures).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW = 12
"""Rows up to which the 8-bit kernel is faster than widening the weights for one product in bfloat16, on a CPU that
multiplies it in hardware. On others it is faster for any number."""

_BLOCK = 16
"""Widths that are no multiple of this crash PyTorch's kernel (2.13); such layers stay as they are."""


class Int8Linear(nn.Module):
    """A frozen linear layer with weights in 8 bit, symmetric, one scale a row.

    Args:
        linear: the layer it stands for; its input width is a multiple of 16.

    Attributes:
        weight: (out_features, in_features) int8.
        scale: (out_features,) float32, every one of them a bfloat16 number.
        bias: (out_features,) or None.
    """

    weight: Tensor
    scale: Tensor
    narrow_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        # The kernel takes its scales in bfloat16: rounding them first, and up, keeps that out of the result.
        largest = weight.abs().amax(1) / 127
        narrow = (largest * (1 + 2**-8)).to(torch.bfloat16)
        scale = narrow.float()
        whole = (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round_().clamp_(-127, 127)
        self.register_buffer("weight", whole.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("narrow_scale", narrow, persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """As the linear layer, (..., in_features) to (..., out_features), within the rounding of its weights."""
        low = x.to(torch.bfloat16)
        rows = x.numel() // self.in_features
        if (rows <= _FEW or not multiplies_bfloat16()) and not low.requires_grad:
            flat = torch._weight_int8pack_mm(low.reshape(rows, self.in_features), self.weight, self.narrow_scale)
            out = flat.view(*x.shape[:-1], self.out_features).to(x.dtype)
        else:
            # A whole number up to 127 is exact in bfloat16, so this widens without rounding.
            out = (F.linear(low, self.weight.to(torch.bfloat16)).float() * self.scale).to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """What printing the model shows of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16; without them they are slower than in float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def suits_this_cpu() -> bool:
    """Whether 8-bit weights were measured to be the fastest on such a CPU: x86 with AVX2 or AVX-512."""
    return hasattr(torch, "_weight_int8pack_mm") and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def to_int8(model: nn.Module) -> None:
    """Put `Int8Linear` in the place of every linear layer that it can stand for."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.in_features % _BLOCK == 0:
                setattr(module, name, Int8Linear(child))
