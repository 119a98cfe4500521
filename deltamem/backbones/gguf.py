"""Converting a GGUF file to a plain Hugging Face directory, once."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltamem.backbones.quiet import quiet

_LEFT_OUT = ("quantization_config", "_name_or_path")


def convert_gguf(file: Path, directory: Path) -> None:
    """Write the model (unpacked to float32) and tokenizer of a GGUF file in Hugging Face form."""
    with quiet():
        _convert(file, directory)


def _convert(file: Path, directory: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # The loaded model carries its quantizer and refuses to be saved; the same weights in a plain one do not.
    config = {k: v for k, v in loaded.config.to_dict().items() if k not in _LEFT_OUT}
    with torch.device("meta"):
        plain = type(loaded)(type(loaded.config).from_dict(config))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
