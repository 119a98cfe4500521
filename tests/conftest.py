"""Tiny random models of several families, a byte-level tokenizer with a chat template, and a private home."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.episodes.synthetic import SyntheticPeople

torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))))

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config, {}),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 12, "sliding_window": None}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"head_dim": 16, "sliding_window": 512}),
}


def make_model(family: str = "llama", attention: str = "sdpa", dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    """A tiny model with fixed random weights."""
    model_class, config_class, extra = FAMILIES[family]
    torch.manual_seed(7)
    config = config_class(**TINY | extra | sizes, attn_implementation=attention)
    return model_class(config).to(dtype).eval()


def make_memory(model: Any, seed: int = 3, **options: Any) -> DeltaMemory:
    """An attached memory whose corrections are strong enough to see."""
    torch.manual_seed(seed)
    config = DeltaMemConfig(**{"delta_heads": ("q", "o"), "output_init": "random", "online_gain": 1.0} | options)
    memory = DeltaMemory.attach(model, config)
    with torch.no_grad():
        for layer in memory.adapter:
            layer.beta_proj.normal_(std=0.5)
            if config.needs_lambda:
                layer.lambda_proj.normal_(std=0.5)
    return memory


@pytest.fixture
def model() -> Any:
    return make_model()


TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """Every byte is a token; two control tokens on top."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>")
    wrapped.pad_token = "<|im_end|>"
    wrapped.chat_template = TEMPLATE
    return wrapped


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Every byte is a token."""
    return make_tokenizer()


WORDS = [f" {a}{b}" for a in ("Ab", "Cd", "Ef", "Gh", "Ij") for b in ("one", "two", "six", "ten")]


class Words:
    """A tokenizer that has some words as single tokens, for the generator."""

    def __init__(self) -> None:
        self.vocabulary = WORDS + [w.lower() for w in WORDS]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def decode(self, ids: list[int]) -> str:
        return self.vocabulary[ids[0]]


@pytest.fixture
def people() -> SyntheticPeople:
    """The generator over those words."""
    return SyntheticPeople(Words())


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny backbone as a directory on disk."""
    directory = tmp_path_factory.mktemp("backbone")
    make_model().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny backbone."""
    directory = tmp_path_factory.mktemp("adapter")
    make_memory(make_model()).save_pretrained(directory)
    return directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of the test's own; the cache of backbones stays where it is."""
    monkeypatch.setenv("DELTAMEM_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


@pytest.fixture
def ids() -> Callable[..., torch.Tensor]:
    """Random token ids, the same for the same seed."""

    def make(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make
