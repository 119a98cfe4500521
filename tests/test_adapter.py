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
    SHIPPED,
    adapter_fingerprint,
    load_adapter,
    save_adapter,
    ship_adapter,
    shipped_adapters,
    small_tensors,
)
from deltamem.errors import AdapterError
from deltamem.shared_tensors import SHARED_FILE, held_by
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


def two_that_ship(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, torch.Tensor]]:
    """Adapters "first" and "second" in `shipped`, which differ in one tensor."""
    monkeypatch.setattr("deltamem.adapter.SHIPPED", shipped)
    memory = make_memory(make_model(), rank=64)
    first = memory.adapter_tensors()
    second = dict(first)
    changed = min(k for k in first if k.endswith("memory_q_proj"))
    second[changed] = second[changed] + 1
    ship_adapter("first", memory.config, first, [])
    ship_adapter("second", memory.config, second, shipped_adapters())
    assert set(load_file(shipped / "second" / NATIVE_FILE)) == {changed}
    return {"first": first, "second": second}


def test_adapters_that_ship_hold_a_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, expected in two_that_ship(tmp_path, monkeypatch).items():
        found = load_adapter(name)[1]
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
    copied = tmp_path / "elsewhere" / "mine"
    shutil.copytree(tmp_path / "second", copied)
    assert load_adapter(copied)[1].keys() == load_adapter("second")[1].keys()
    config, whole = load_adapter("second")
    save_adapter(copied, config, whole)  # a run that goes on in such a directory holds all of its own
    shutil.rmtree(tmp_path / "first")
    assert load_adapter(copied)[1].keys() == whole.keys()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("[", "can't be read"),
        ('["first"]', "can't be read"),
        ('{"first": "memory_q_proj"}', "can't be read"),
        ('{"third": ["x"]}', "does not ship with this deltamem"),
        ('{"../first": ["x"]}', "does not ship with this deltamem"),
        ('{"first": ["x"]}', "first lacks the tensor"),
    ],
)
def test_shared_tensors_that_are_not_there_are_refused(
    listed: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_that_ship(tmp_path, monkeypatch)
    (tmp_path / "second" / SHARED_FILE).write_text(listed)
    with pytest.raises(AdapterError, match=said):
        load_adapter("second")


def test_no_adapter_of_the_package_stores_what_another_one_has() -> None:
    names = shipped_adapters()
    for name in names:
        own = load_file(SHIPPED / name / NATIVE_FILE)
        assert not held_by({other: SHIPPED / other / NATIVE_FILE for other in names if other != name}, own), name


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
