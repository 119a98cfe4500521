"""Every GPU check and measurement in one command, as a table.

    python scripts/gpu_check.py --output benchmarks

Runs on one CUDA device, needs no network and no real weights: speed and memory are measured on a model of
Qwen3-4B's shape with random weights. Writes `gpu-<device>-<date>.md` into --output. On a machine without a GPU it
says so and exits with 2.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.recurrence import delta_rule_chunked, delta_rule_naive, gates_from

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
}
Row = tuple[str, str]


def recurrence_agrees() -> list[Row]:
    """The chunked form on the GPU against the token loop in float64 on the CPU."""
    rows = []
    for mode in ("standard", "lambda_outside", "no_lambda"):
        generator = torch.Generator().manual_seed(0)
        q, k, v, b, y = (torch.randn(2, 1000, 1, 8, generator=generator, dtype=torch.float64) for _ in range(5))
        q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
        beta, lam = torch.sigmoid(b), torch.sigmoid(y)
        state = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
        expected = delta_rule_naive(q, k, v, gates_from(beta, lam, mode), state)
        moved = [x.float().cuda() for x in (q, k, v, beta, lam, state)]
        actual = delta_rule_chunked(*moved[:3], gates_from(moved[3], moved[4], mode), moved[5])
        worst = max(
            float((a.double().cpu() - e).abs().max() / e.abs().max()) for a, e in zip(actual, expected, strict=True)
        )
        rows.append((f"recurrence {mode}, largest error", f"{worst:.1e} {'ok' if worst < 1e-5 else 'WRONG'}"))
    return rows


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time of some GPU work."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[repeats // 2]


def speed_and_memory(quantize: bool) -> list[Row]:
    """Prompt, decode and peak memory, frozen against memory, on a Qwen3-4B shape."""
    kind = "nf4" if quantize else "bf16"
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(torch.bfloat16).eval().requires_grad_(False)
    if quantize:
        _to_nf4(model)
    config = DeltaMemConfig(delta_heads=("q", "o"), output_init="base_slice")
    memory = DeltaMemory.attach(model, config)
    rows = []
    for length in (1024, 8192):
        ids = torch.randint(0, 150000, (1, length), device="cuda")
        measured = {}
        for name, mode in (("frozen", memory.disabled), ("memory", memory.writing)):

            def prompt(mode: Any = mode, ids: torch.Tensor = ids) -> Any:
                with torch.inference_mode(), mode():
                    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

            torch.cuda.reset_peak_memory_stats()
            took = seconds(prompt)
            peak = torch.cuda.max_memory_allocated() / 2**20
            cache = prompt()

            def step(mode: Any = mode, cache: Any = cache, ids: torch.Tensor = ids) -> None:
                with torch.inference_mode(), mode():
                    model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

            measured[name] = (took, seconds(step, 20), peak)
            del cache
        (fp, fd, fm), (mp, md, mm) = measured["frozen"], measured["memory"]
        rows.append((f"{kind} prompt {length}", f"{1e3 * fp:.1f} -> {1e3 * mp:.1f} ms, {mp / fp:.2f}x"))
        rows.append((f"{kind} decode after {length}", f"{1e3 * fd:.1f} -> {1e3 * md:.1f} ms, {md / fd:.2f}x"))
        rows.append((f"{kind} peak memory at {length}", f"{fm:.0f} -> {mm:.0f} MiB, {mm - fm:+.0f} MiB"))
    memory.detach()
    return rows


def _to_nf4(model: Any) -> None:
    import bitsandbytes as bnb

    for block in model.model.layers:
        for holder in (block.self_attn, block.mlp):
            for name, linear in list(holder.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    packed = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=linear.bias is not None,
                        compute_dtype=torch.bfloat16,
                        quant_type="nf4",
                    )
                    packed.load_state_dict(linear.state_dict())
                    setattr(holder, name, packed.cuda())


def main() -> int:
    """Run all, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA GPU here; nothing was measured")
        return 2
    device = torch.cuda.get_device_name()
    rows = recurrence_agrees() + speed_and_memory(False)
    gc.collect()
    torch.cuda.empty_cache()
    try:
        rows += speed_and_memory(True)
    except ImportError:
        rows.append(("nf4", "bitsandbytes is not installed"))
    lines = [f"# {device}, {date.today()}, torch {torch.__version__}", "", "| what | figure |", "| --- | --- |"]
    lines += [f"| {what} | {figure} |" for what, figure in rows]
    text = "\n".join(lines) + "\n"
    print(text)
    options.output.mkdir(parents=True, exist_ok=True)
    name = device.lower().replace(" ", "-")
    (options.output / f"gpu-{name}-{date.today()}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
