"""The published implementation's outputs, reproduced (vectors made from random weights; see their README)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from deltamem import DeltaMemory

PARITY = Path(__file__).parent / "parity"
FOLDERS = sorted(p.name for p in PARITY.iterdir() if (p / "expected.safetensors").is_file())


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual - expected).abs().max()
    assert error <= 2e-5 * expected.abs().max(), f"off by {error:.2e}"


def check_state(memory: DeltaMemory, expected: dict[str, torch.Tensor], moment: str) -> None:
    for path, state in zip(memory.paths, memory.state.tensor, strict=True):
        want = expected[f"state_after_{moment}.{path}"]
        close(state.reshape(want.shape), want)


@pytest.mark.parametrize("folder", FOLDERS)
def test_published_outputs(folder: str) -> None:
    expected = load_file(PARITY / folder / "expected.safetensors")
    backbone = PARITY / f"backbone_{folder.split('_')[0]}"
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32, attn_implementation="eager").eval()
    memory = DeltaMemory.from_pretrained(model, PARITY / folder)
    segments = {
        "message_mean": expected["write_message_ids"],
        "sentence_mean": expected["write_sentence_ids"],
    }.get(memory.config.memory_write_granularity)

    with torch.no_grad():
        with memory.writing(segments=segments):
            close(model(input_ids=expected["write_ids"]).logits, expected["write_logits"])
        check_state(memory, expected, "write")
        with memory.reading():
            close(model(input_ids=expected["read_ids"]).logits, expected["read_logits"])
        check_state(memory, expected, "write")

        if "decode_logits" in expected:
            cache = DynamicCache(config=model.config)
            with memory.writing():
                logits = [model(input_ids=expected["decode_prompt_ids"], past_key_values=cache).logits[:, -1]]
                for token in expected["decode_token_ids"].T:
                    logits.append(model(input_ids=token[:, None], past_key_values=cache).logits[:, -1])
            close(torch.stack(logits, 1), expected["decode_logits"])
            check_state(memory, expected, "decode")

            memory.reset(batch_size=2)
            with memory.writing():
                out = model(input_ids=expected["batch_ids"], attention_mask=expected["batch_attention_mask"]).logits
            close(out[0], expected["batch_logits_row0"])
            close(out[1, :15], expected["batch_logits_row1_first15"])
            check_state(memory, expected, "batch")
