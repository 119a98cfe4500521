"""Loading a backbone: device, precision, 4-bit, and its fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from deltamem.backbones.catalog import CATALOG, GPU_DEFAULT, GPU_DEFAULT_BYTES, SMALL_DEFAULT
from deltamem.backbones.exhausted import out_of_memory_advice, ran_out_of_memory
from deltamem.backbones.fetch import fetch
from deltamem.backbones.int8 import suits_this_cpu, to_int8
from deltamem.backbones.progress import Progress, Report, silent
from deltamem.backbones.quiet import quiet
from deltamem.errors import BackboneError

Quantize = Literal["auto", "nf4", "int8", "none"]


@dataclass
class Backbone:
    """A loaded backbone.

    Attributes:
        name: as the user named it.
        path: where it was loaded from.
        model: the causal language model, in evaluation mode, frozen.
        tokenizer: its tokenizer.
        device: where it runs.
        quantization: "nf4", "int8", "none", or the checkpoint's own method.
        fingerprint: 16 hexadecimal digits, the same for every precision of the same weights.
        adapter: the adapter recommended for it, or None.
    """

    name: str
    path: Path
    model: Any
    tokenizer: Any
    device: torch.device
    quantization: str
    fingerprint: str
    adapter: str | None

    @property
    def stops(self) -> frozenset[int]:
        """Token ids that end a reply, by the generation config."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def default_backbone() -> str:
    """The alias used where none is named: a 4B model on a GPU that holds it, else the small one."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            if torch.cuda.get_device_properties(0).total_memory >= GPU_DEFAULT_BYTES:
                return GPU_DEFAULT
    return SMALL_DEFAULT


def pick_device(device: str = "auto") -> torch.device:
    """The device for "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        BackboneError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise BackboneError(f"{device!r} is no device; try cpu, cuda or mps") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BackboneError("there is no CUDA GPU here; use --device cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise BackboneError("there is no Apple GPU here; use --device cpu")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise BackboneError(f"{device!r} is not supported; try cpu, cuda or mps")
    return chosen


def default_quantization(device: torch.device) -> str:
    """What "auto" stands for: NF4 on a CUDA GPU, 8-bit weights on a CPU that is fast with them, else none."""
    if device.type == "cuda":
        return "nf4"
    return "int8" if device.type == "cpu" and suits_this_cpu() else "none"


def _own_int8(quantization: str, device: torch.device) -> bool:
    return quantization == "int8" and device.type == "cpu"


def load_backbone(
    name: str | None = None,
    device: str = "auto",
    quantize: Quantize = "auto",
    dtype: torch.dtype | None = None,
    report: Report = silent,
) -> Backbone:
    """Fetch a backbone where needed, and load it.

    Args:
        name: an alias, a local directory or a hub id; None for the default of this machine.
        device: "auto", "cpu", "cuda", "mps".
        quantize: "auto" is what `default_quantization` says, or none where a `dtype` is given on a CPU; a checkpoint
            that is quantized loads as it is. "int8" is bitsandbytes' on a GPU and `Int8Linear` on a CPU.
        dtype: of the weights that are not quantized; bfloat16 on a GPU and float32 on a CPU by default.
        report: gets progress.

    Raises:
        BackboneError: it can't be had, isn't a usable model, or doesn't fit into memory.
    """
    name = name or default_backbone()
    where = pick_device(device)
    path = fetch(name, report)
    report(Progress(f"loading {name}", 0, None, "steps"))
    plain = dtype is not None and where.type == "cpu"
    if dtype is None:
        dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path, local_files_only=True)
            own = getattr(config, "quantization_config", None)
            if own is not None:
                quantization = str(own.get("quant_method", "own") if isinstance(own, dict) else own)
                options["device_map"] = {"": where}
            else:
                quantization = quantize
                if quantize == "auto":
                    quantization = "none" if plain else default_quantization(where)
                if quantization != "none" and not _own_int8(quantization, where):
                    options["quantization_config"] = _quantizer(quantization)
                    options["device_map"] = {"": where}
            model = AutoModelForCausalLM.from_pretrained(path, **options)
            if own is None and _own_int8(quantization, where):
                to_int8(model)
            if "device_map" not in options:
                model = model.to(where)
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise BackboneError(out_of_memory_advice(name, where)) from None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BackboneError(f"{name} can't be loaded as a causal language model: {first}") from None
    model.eval().requires_grad_(False)
    entry = CATALOG.get(name)
    return Backbone(
        name=name,
        path=path,
        model=model,
        tokenizer=tokenizer,
        device=where,
        quantization=quantization,
        fingerprint=backbone_fingerprint(model),
        adapter=entry.adapter if entry else None,
    )


def _quantizer(kind: str) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"--quantize {kind} needs bitsandbytes: pip install 'deltamem[quantize]', or use --quantize none"
        )
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise BackboneError(f"--quantize takes auto, nf4, int8 or none, not {kind!r}")


def backbone_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of a backbone's family, shape and normalisation weights.

    The norms stay unquantized in every 4-bit and 8-bit form, and are taken in bfloat16, so that a profile made on
    a GPU in NF4 opens on a CPU in float32.
    """
    config: Any = model.config
    shape = {
        key: getattr(config.get_text_config(), key, None)
        for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1 and name.endswith("norm.weight"):
            values = parameter.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16)
            digest.update(name.encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]
