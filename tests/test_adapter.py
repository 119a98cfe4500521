"""Adapters on disk: written natively, read in both layouts, refused when they do not belong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltamem import DeltaMemory
from deltamem.adapter import (
    CONFIG_FILE,
    NATIVE_FILE,
    PUBLISHED_FILE,
    adapter_fingerprint,
    load_adapter,
    save_adapter,
    small_tensors,
)
from deltamem.errors import AdapterError
from tests.conftest import make_memory, make_model

PARITY = Path(__file__).parent / "parity"


def test_round_trip(tmp_path: Path) -> None:
    memory = make_memory(make_model(), couple_lambda=False, trainable_delta_scale=True, delta_o_rmsnorm=True)
    memory.save_pretrained(tmp_path)
    again = DeltaMemory.from_pretrained(make_model(), tmp_path)
    assert again.config == memory.config
    ours, theirs = memory.adapter_tensors(), again.adapter_tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert adapter_fingerprint(again.config, theirs) == adapter_fingerprint(memory.config, ours)
    assert sorted(p.name for p in tmp_path.iterdir()) == [NATIVE_FILE, CONFIG_FILE]


def test_what_an_adapter_does_not_use_can_be_left_out(tmp_path: Path) -> None:
    memory = make_memory(make_model(), delta_heads=("o",))
    whole = memory.adapter_tensors()
    save_adapter(tmp_path, memory.config, small_tensors(memory.config, whole))
    kept = load_file(tmp_path / NATIVE_FILE)
    assert not any("delta_q" in k or "delta_k" in k or "delta_v" in k for k in kept)
    again = DeltaMemory.from_pretrained(make_model(), tmp_path).adapter_tensors()
    for key, tensor in whole.items():
        assert torch.equal(again[key], tensor.to(torch.bfloat16).float()), key


def test_the_published_layout_and_the_native_one_are_the_same_adapter(tmp_path: Path) -> None:
    source = PARITY / "qwen3_tsw_qo"
    config, tensors = load_adapter(source)
    shutil.copy(source / CONFIG_FILE, tmp_path)
    save_file(tensors, tmp_path / NATIVE_FILE)
    again_config, again = load_adapter(tmp_path)
    assert adapter_fingerprint(config, tensors) == adapter_fingerprint(again_config, again)


def test_the_fingerprint_changes_with_any_number(tiny_adapter: Path) -> None:
    config, tensors = load_adapter(tiny_adapter)
    before = adapter_fingerprint(config, tensors)
    next(iter(tensors.values())).view(-1)[0] += 1e-6
    assert adapter_fingerprint(config, tensors) != before


def test_code_in_a_published_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    shutil.copy(PARITY / "qwen3_tsw_qo" / CONFIG_FILE, tmp_path)
    torch.save({"x": Attack()}, tmp_path / PUBLISHED_FILE)
    with pytest.raises(AdapterError, match="damaged or not an adapter"):
        load_adapter(tmp_path)
    assert not marker.exists()


def refused(adapter: Path, match: str, model: Any = None) -> None:
    with pytest.raises(AdapterError, match=match):
        DeltaMemory.from_pretrained(model or make_model(), adapter)


@pytest.fixture
def adapter(tmp_path: Path, tiny_adapter: Path) -> Path:
    shutil.copytree(tiny_adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(adapter: Path, change: Any) -> None:
    tensors = load_file(adapter / NATIVE_FILE)
    change(tensors)
    save_file(tensors, adapter / NATIVE_FILE)


def test_a_wrong_backbone_is_refused_with_what_differs(adapter: Path) -> None:
    refused(adapter, "3 attention modules.*the backbone has 5", make_model(num_hidden_layers=5))
    refused(adapter, r"memory_q_proj is \(8, 48\), here it would be \(8, 64\)", make_model(hidden_size=64))


def test_damaged_adapters_are_refused(adapter: Path) -> None:
    key = "model.layers.1.self_attn.beta_bias"
    edit(adapter, lambda t: t.update({key: torch.full((8,), float("nan"))}))
    refused(adapter, f"NaN or infinite numbers in {key}")
    edit(adapter, lambda t: t.pop(key))
    refused(adapter, f"lacks the tensor {key}")
    edit(adapter, lambda t: t.update({key: torch.zeros(8), "model.layers.1.self_attn.more": torch.zeros(1)}))
    refused(adapter, r"not mention: 'model\.layers\.1\.self_attn\.more")
    (adapter / NATIVE_FILE).write_bytes((adapter / NATIVE_FILE).read_bytes()[:-100])
    refused(adapter, "damaged")
    (adapter / NATIVE_FILE).unlink()
    refused(adapter, "has neither")
    (adapter / CONFIG_FILE).write_text(json.dumps({"rank": -1}))
    refused(adapter, "rank must be 1 or more")


def test_a_name_that_is_nothing_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no adapter")
