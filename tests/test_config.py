"""The configuration and its published JSON form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltamem import DeltaMemConfig
from deltamem.errors import ConfigError

PARITY = Path(__file__).parent / "parity"


@pytest.mark.parametrize("path", sorted(PARITY.glob("*/delta_mem_config.json")), ids=lambda p: p.parent.name)
def test_published_files_load_and_live_keys_survive(path: Path) -> None:
    config = DeltaMemConfig.from_json_file(path)
    data = json.loads(path.read_text())
    assert {k: v for k, v in config.to_dict().items() if k in data} == {
        k: v for k, v in data.items() if k in config.to_dict()
    }
    assert DeltaMemConfig.from_dict(config.to_dict()) == config


def test_what_the_paper_does_not_have_is_on_file_only_where_it_is_used() -> None:
    # Fingerprints of adapters made before there were read gates must not change.
    assert not {"read_gate", "reads", "base_state", "base_queries", "fading", "learned_erase"} & set(
        DeltaMemConfig().to_dict()
    )
    assert DeltaMemConfig.from_dict(DeltaMemConfig(read_gate=True).to_dict()).read_gate


def test_a_retired_option_that_is_switched_on_is_named() -> None:
    with pytest.raises(ConfigError, match="num_memory_partitions"):
        DeltaMemConfig.from_dict({"num_memory_partitions": 4})
    DeltaMemConfig.from_dict({"num_memory_partitions": 1})


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ConfigError, match="'rnak'"):
        DeltaMemConfig.from_dict({"rnak": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", "8"),
        ("rank", True),
        ("alpha", float("nan")),
        ("alpha", None),
        ("delta_heads", ["q", "x"]),
        ("delta_heads", ["q", "q"]),
        ("delta_heads", "qo"),
        ("target_layers", [-1]),
        ("target_layers", [1, 1]),
        ("target_modules", []),
        ("memory_write_granularity", "paragraph"),
        ("state_update_mode", 3),
        ("normalize_qk", 1),
        ("delta_scale_init", 2.0),
        ("delta_scale_parameterization", "other"),
        ("online_gain", [1]),
        ("base_queries", True),
        ("learned_erase", 1),
    ],
)
def test_bad_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        DeltaMemConfig.from_dict({key: value})


def test_segment_writes_have_one_head() -> None:
    with pytest.raises(ConfigError, match="one state head"):
        DeltaMemConfig(memory_write_granularity="message_mean", num_state_heads=2)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"rank": 8', "[" * 100_000])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "delta_mem_config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"delta_mem_config\.json"):
        DeltaMemConfig.from_json_file(path)
