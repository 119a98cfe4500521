"""Every GPU check and measurement in one command, as a table.

    python scripts/gpu_check.py --output benchmarks

Runs on one CUDA device, needs no network and no real weights: speed and memory are measured on a model of
Qwen3-4B's shape with random weights. Writes `gpu-<device>-<date>.md` into --output. On a machine without a GPU it
says so and exits with 2; with 1 where something failed or is wrong.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from deltamem import DeltaMemConfig, DeltaMemory
from deltamem.key_pairs import lent, lent_width
from deltamem.layer import DeltaLayer
from deltamem.recurrence import delta_rule_chunked, delta_rule_naive, gates_from
from deltamem.recurrence.kernels import delta_rule_kernels
from deltamem.session.growing_cache import GrowingCache
from deltamem.session.recorded import RecordedTokens

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
    """The fast forms on the GPU, with their gradients, against the token loop in float64 on the CPU."""
    rows = []
    for name, rule in (("chunked", delta_rule_chunked), ("kernels", delta_rule_kernels)):
        for mode in ("standard", "lambda_outside", "no_lambda"):
            exact = _problem(2, 1000, torch.float64, "cpu")
            expected = _with_gradients(delta_rule_naive, exact, mode)
            actual = _with_gradients(rule, _problem(2, 1000, torch.float32, "cuda"), mode)
            pairs = zip(actual, expected, strict=True)
            worst = max(float((x.double().cpu() - y).abs().max() / y.abs().max().clamp_min(1)) for x, y in pairs)
            rows.append((f"{name}, {mode}: largest error", f"{worst:.1e} {'ok' if worst < 1e-4 else 'WRONG'}"))
    return rows


def _problem(batch: int, length: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v, b = (normal(batch, length, 1, 8) for _ in range(4))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    leaves = (q, k, v, torch.sigmoid(b), normal(batch, 1, 8, 8))
    return [x.to(device=device, dtype=dtype).requires_grad_() for x in leaves]


def _with_gradients(rule: Any, leaves: list[torch.Tensor], mode: str) -> list[torch.Tensor]:
    q, k, v, beta, state = leaves
    outputs = rule(q, k, v, gates_from(beta, 1 - beta, mode), state)
    gradients = torch.autograd.grad(outputs[0].square().sum() + outputs[1].sum(), leaves)
    return [x.detach() for x in (*outputs, *gradients)]


def token_agrees() -> list[Row]:
    """A token through the kernel against the same token through the layer."""
    rows = []
    shapes: list[tuple[int, str, dict[str, Any]]] = [
        (1, "standard", {}),
        (4, "lambda_outside", {}),
        (1, "no_lambda", {}),
    ]
    in_pairs = {"keys": "pair", "read_gate": True, "read_gate_floor": 0.2, "write_gate_floor": 0.2, "base_state": True}
    for share, fading in ((1.0, 0.0), (0.2, 0.0), (0.3, 0.7)):
        keys = {"own_share": share, "fading": fading, "base_queries": fading > 0}
        shapes.append((1, "no_lambda", in_pairs | keys))
    shapes.append((4, "lambda_outside", in_pairs | {"learned_erase": True}))
    for heads, mode, more in shapes:
        torch.manual_seed(0)
        config = DeltaMemConfig(num_state_heads=heads, state_update_mode=mode, output_init="random", **more)
        layer = DeltaLayer(config, 256, dict.fromkeys("qkvo", 256)).cuda().requires_grad_(False)
        for parameter in layer.parameters():
            parameter.normal_(std=0.1)  # a gate of zeros would say the same whatever is read of it
        x, state = torch.randn(4, 1, 256, device="cuda"), torch.randn(4, heads, 8, 8, device="cuda")
        before = torch.rand(4, lent_width(config), device="cuda")
        found = []
        for wanted in (False, True):
            with _kernels(wanted), torch.no_grad():
                found.append(layer.read_and_write(x, state, lend=partial(lent, first=before, there=None)))
        worst = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
        faded = f", fading by {config.fading}" if config.fading else ""
        pairs = f", keys in pairs, {config.own_share} of their own{faded}" if more else ""
        pairs += ", learned erase" if config.learned_erase else ""
        rows.append(
            (
                f"token kernel, {mode}, {heads} heads{pairs}: largest error",
                f"{worst:.1e} {'ok' if worst < 1e-4 else 'WRONG'}",
            )
        )
    return rows


def recurrence_speed() -> list[Row]:
    """T = 8192 for 36 layers at once, against copying what goes in and comes out."""
    leaves = [x.detach() for x in _problem(36, 8192, torch.float32, "cuda")]
    q, k, v, beta, state = leaves
    gates = gates_from(beta, 1 - beta, "standard")
    moved = torch.empty(5 * q.numel() // 2 + gates.write.numel(), device="cuda")  # read once and written once
    copied = torch.empty_like(moved)
    copy = seconds(lambda: copied.copy_(moved))
    rows = [("copying what the recurrence moves, T = 8192, 36 layers", f"{1e3 * copy:.3f} ms")]
    for name, rule in (("chunked", delta_rule_chunked), ("kernels", delta_rule_kernels)):

        def forward(rule: Any = rule) -> None:
            with torch.inference_mode():
                rule(q, k, v, gates, state)

        took = seconds(forward)
        rows.append((f"recurrence, {name}, forward", f"{1e3 * took:.3f} ms, {took / copy:.1f}x the copy"))
        trained = _problem(36, 512, torch.float32, "cuda")
        both = seconds(lambda rule=rule, trained=trained: _with_gradients(rule, trained, "standard"))  # type: ignore[misc]
        rows.append((f"recurrence, {name}, T = 512, forward and backward", f"{1e3 * both:.3f} ms"))
    return rows


def _kernels(wanted: bool) -> Any:
    """For sequences and for single tokens alike."""
    return mock.patch.dict(os.environ, {"DELTAMEM_KERNELS": "triton" if wanted else "torch"})


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
    """Prompt, decode and peak memory, frozen, with memory, and with memory through the kernels, on a Qwen3-4B shape."""
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
        for name, mode, kernels in (
            ("frozen", memory.disabled, False),
            ("memory", memory.writing, False),
            ("kernels", memory.writing, True),
        ):

            def prompt(mode: Any = mode, ids: torch.Tensor = ids) -> Any:
                with torch.inference_mode(), mode():
                    return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

            with _kernels(kernels):
                prompt()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                took = seconds(prompt)
                peak = (torch.cuda.max_memory_allocated() - before) / 2**20
                cache = prompt()

                def step(mode: Any = mode, cache: Any = cache, ids: torch.Tensor = ids) -> None:
                    with torch.inference_mode(), mode():
                        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

                measured[name] = (took, seconds(step, 20), peak)
            del cache
        (fp, fd, fm) = measured["frozen"]
        for name in ("memory", "kernels"):
            (mp, md, mm) = measured[name]
            rows.append((f"{kind} prompt {length}, {name}", f"{1e3 * fp:.1f} -> {1e3 * mp:.1f} ms, {mp / fp:.2f}x"))
            rows.append((f"{kind} decode at {length}, {name}", f"{1e3 * fd:.1f} -> {1e3 * md:.1f} ms, {md / fd:.2f}x"))
            rows.append((f"{kind} peak at {length}, {name}", f"{fm:.0f} -> {mm:.0f} MiB, {mm - fm:+.0f} MiB"))
    for kernels in (False, True):
        with _kernels(kernels):
            rows += recorded(model, memory, kind, ", kernels" if kernels else "")
    memory.detach()
    rows += recorded(model, None, kind)
    return rows


def recorded(model: Any, memory: DeltaMemory | None, kind: str, which: str = "") -> list[Row]:
    """A token replayed (`--compile on`) beside the same token called, at two lengths of the cache."""
    rows = []
    name = ("frozen" if memory is None else "memory") + which
    for length in (500, 4000):
        tokens = RecordedTokens(model, memory)
        cache = GrowingCache(model, 8192)
        cache.make_room(length + 64)  # for the tokens that are timed
        ids = torch.randint(0, 150000, (1, length), device="cuda")
        with torch.inference_mode(), memory.writing() if memory is not None else nullcontext():
            model(input_ids=ids, past_key_values=cache.cache, use_cache=True, logits_to_keep=1)
        cache.fed(length)

        def replayed(tokens: Any = tokens, cache: Any = cache) -> None:
            with torch.inference_mode():
                tokens.feed(7, cache, "off" if memory is None else "write")

        def called(cache: Any = cache, ids: torch.Tensor = ids) -> None:
            with torch.inference_mode(), memory.writing() if memory is not None else nullcontext():
                model(input_ids=ids[:, :1], past_key_values=cache.cache, use_cache=True, logits_to_keep=1)

        slow = seconds(called, 20)
        cache.cut(length)
        fast = seconds(replayed, 20)
        said = tokens.failure or f"{1e3 * slow:.1f} -> {1e3 * fast:.1f} ms, {slow / fast:.1f}x as fast"
        rows.append((f"{kind} token at {length}, {name}: called -> replayed", said))
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
                        device="cuda",
                    )
                    packed.load_state_dict(linear.state_dict())
                    setattr(holder, name, packed.cuda())


PARTS: dict[str, Callable[[], list[Row]]] = {
    "agreement": lambda: recurrence_agrees() + token_agrees(),
    "recurrence": recurrence_speed,
    "bf16": lambda: speed_and_memory(False),
    "nf4": lambda: speed_and_memory(True),
}
"""What is checked, in this order."""


def rows_of(part: str) -> list[Row]:
    """A part's rows; what it failed with is one of them, so that the others are measured all the same."""
    began = time.perf_counter()
    try:
        gc.collect()
        torch.cuda.empty_cache()  # in here: after a failed kernel this fails as well
        if part == "nf4" and find_spec("bitsandbytes") is None:
            return [("nf4", "bitsandbytes is not installed")]
        return [*PARTS[part](), (f"seconds for {part}", f"{time.perf_counter() - began:.0f}")]
    except Exception as error:
        traceback.print_exc()
        return [(part, f"FAILED: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")]


def main() -> int:
    """Run all, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between (default: all)")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print("there is no CUDA GPU here; nothing was measured")
        return 2
    device = torch.cuda.get_device_name()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"gpu-{device.lower().replace(' ', '-')}-{date.today()}.md"
    lines = [f"# {device}, {date.today()}, torch {torch.__version__}", "", "| what | figure |", "| --- | --- |"]
    failed = False
    for part in parts:
        rows = rows_of(part)
        failed |= any(figure.startswith("FAILED") or "WRONG" in figure for _, figure in rows)
        lines += [f"| {what} | {figure} |" for what, figure in rows]
        print("\n".join(f"| {what} | {figure} |" for what, figure in rows), flush=True)
        file.write_text("\n".join(lines) + "\n")  # after each: a lease that ends leaves what was measured
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
