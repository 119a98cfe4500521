"""`deltamem inspect-state --probe`: what a memory does to one answer."""

from __future__ import annotations

from deltamem.adapter import adapter_fingerprint
from deltamem.chat_format import ChatFormat
from deltamem.episodes.passes import Passes
from deltamem.errors import DeltaMemError
from deltamem.evaluation.probe import probe
from deltamem.memory import DeltaMemory
from deltamem.profiles import ProfileStore, load_profile
from deltamem_cli.opening import adapter_for, open_backbone
from deltamem_cli.terminal import notice, out, pairs, table, write_json

_LAYERS = 8


def run_probe(
    name: str, question: str, backbone_name: str | None, adapter: str | None, device: str, quantize: str, as_json: bool
) -> None:
    """Ask with, without and with a shuffled memory."""
    if not question.strip():
        raise DeltaMemError("--probe takes a question")
    path = ProfileStore().existing(name)
    profile = load_profile(path)
    backbone = open_backbone(backbone_name or profile.info.backbone, device, quantize)
    adapter = adapter_for(backbone, adapter, path)
    if adapter is None:
        raise DeltaMemError(f"the profile was made with the adapter {profile.info.adapter}; name it with --adapter")
    memory = DeltaMemory.from_pretrained(backbone.model, adapter)
    fingerprint = adapter_fingerprint(memory.config, memory.adapter_tensors())
    profile.check_fits(backbone.name, backbone.fingerprint, adapter, fingerprint)
    passes = Passes(memory, ChatFormat.of(backbone.tokenizer, stops=backbone.stops))
    found = probe(passes, profile.state, question)
    if as_json:
        write_json(found.to_dict())
        return
    pairs([("question", found.question), ("with memory", found.replies["with"]),
           ("without", found.replies["without"]), ("with a shuffled one", found.replies["shuffled"])])  # fmt: skip
    out.print()
    table(
        ("first token", "with", "without"),
        [(repr(text), f"{100 * p:.1f} %", f"{100 * q:.1f} %") for text, p, q in found.first],
        right=("with", "without"),
    )
    out.print()
    table(
        ("reply with memory", "KL to frozen, nats", ""),
        [(repr(text), f"{kl:.3f}", "█" * round(min(12.0, kl))) for text, kl in found.divergence],
        right=("KL to frozen, nats",),
    )
    out.print()
    table(
        ("layer left out", "KL to all, nats a token"),
        [(layer, f"{kl:.4f}") for layer, kl in found.layers[:_LAYERS]],
        right=("layer left out", "KL to all, nats a token"),
    )
    rest = found.layers[_LAYERS:]
    if rest:
        notice(f"The other {len(rest)} layers change it by {rest[0][1]:.4f} or less each.")
