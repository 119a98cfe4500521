"""`DeltaMemConfig`: everything that decides an adapter's shape and behaviour.

The JSON form is the published one (`delta_mem_config.json`). Published files also carry options of retired
experiments. They are accepted at the value that switches them off and refused at any other, because an adapter
trained with one of them on would silently behave differently here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deltamem.errors import ConfigError, shown

PROJECTIONS = ("q", "k", "v", "o")
"""The attention projections a correction can be added to, in the order of `delta_scale_raw`."""

_CHOICES = {
    "memory_write_granularity": ("token", "message_mean", "sentence_mean"),
    "state_update_mode": ("standard", "lambda_outside", "no_lambda"),
    "output_init": ("zero", "random", "base_slice", "base_slice_fixed"),
    "reads": ("all", "reply"),
    "corrections": ("own", "last"),
    "keys": ("own", "pair"),
    "delta_scale_granularity": ("layer", "head"),
    "delta_scale_parameterization": ("alpha_over_rank",),
}

_OURS = {
    "read_gate": False,
    "read_gate_floor": 0.0,
    "joint_gate": False,
    "second_reader": False,
    "third_reader": False,
    "write_gate_floor": 0.0,
    "reply_floor": 0.0,
    "reads": "all",
    "corrections": "own",
    "keys": "own",
    "own_share": 1.0,
    "fading": 0.0,
    "base_state": False,
    "base_queries": False,
    "plain_read": False,
    "choices": 0,
    "choice_rank": 0,
    "learned_erase": False,
}
"""Options that the published code does not know, and what leaves them out."""

_RETIRED: dict[str, Any] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
}


@dataclass(frozen=True)
class DeltaMemConfig:
    """Configuration of one adapter (arXiv 2605.12357; defaults are the published code's).

    Attributes:
        rank: r, the side of a state matrix.
        alpha: corrections are scaled by ``alpha / rank``.
        num_state_heads: independent state matrices per layer (1 for TSW and SSW, several for MSW).
        memory_write_granularity: ``token`` (TSW, MSW), ``message_mean`` or ``sentence_mean`` (SSW).
        normalize_qk: put tanh and L2 normalisation on queries and keys.
        couple_lambda: retention is ``1 - beta`` rather than a gate of its own.
        state_update_mode: ``standard``, ``lambda_outside`` or ``no_lambda``.
        rankwise_gates: one gate per row of the state rather than one per head.
        beta_bias_init: initial bias of the write gate.
        read_gate: scale each query by a gate in (0, 1) of its own. A query of unit length always reads something; the
            gate lets a token that asks for nothing read nothing. Not in the paper.
        read_gate_floor: a read gate no wider open than this is shut, and one that is wider is as much less so: where
            nothing is asked for, the reply is then the frozen backbone's to the last bit. Not in the paper.
        joint_gate: with corrections at the last layer, scale all that a token reads by one more gate, made of what
            enters all adapted layers, shut below a logit of -1 and open above 1. Whether a question is about oneself
            shows in no layer alone where the reply begins. Not in the paper.
        second_reader: ask the same state with queries and read gates of another reader as well, which has a joint gate
            of its own. Whose reads count for a token is seen by all layers together. What is learnt later, as numbers
            by an adapter that knows words, then takes nothing from how the rest is read. Not in the paper.
        third_reader: one more of that sort, after the second. Not in the paper.
        write_gate_floor: the same as `read_gate_floor` for write gates: a token that tells nothing then writes nothing,
            and takes nothing of what was told before with it. In training only the losses on gates open one that is
            shut. Not in the paper.
        reply_floor: a reply is written only where some token of the message before it has its write gates, in the mean
            of all layers, wider open than this: at 0 all replies are written, at 1 none. The reply to a question is
            what was found in the memory, or made up, and if that is written it comes back louder the next time; the
            reply to what tells something says it in words of its own. Not in the paper.
        reads: which tokens read: ``all``, or those of a ``reply`` alone and the one before it. What a user says is
            then written, and asked, as the frozen backbone reads it. Not in the paper.
        corrections: where those of o are added: to each layer's ``own`` attention output, or all of them to the
            ``last`` adapted layer's. Every hidden state that something is written or asked from then stays the frozen
            backbone's, whatever is in the memory. Not in the paper.
        keys: what the key of a written token is made of: its ``own`` hidden state, or the ``pair`` of that and the one
            of the token written right before it, added up. What a place in a reply asks with is like the token before
            a value more than like the value. A short convolution, as linear attention has them; not in the paper.
        own_share: with keys in pairs, what the key of a token's own hidden state counts for, 0 to 1, where the write
            gate of the token before it stands open; where that is shut it counts in full. At 1, the last token of a
            value asks for itself as much as for what comes next, and is said again ("Zainabab"). Not in the paper.
        fading: with keys in pairs, what a token passes on of what it was lent by the one before it, 0 to less than 1: a
            key is then of all that was written before, each token counting for so much less than the next. The word
            that a value is about stands some tokens before it ("My sister's name is Ruth."). `own_share` then holds
            everywhere. Not in the paper.
        base_state: read a learned matrix together with the state. Nothing is ever written to it, so what is read of an
            empty state can be learned, and does not wear off. Not in the paper.
        base_queries: ask the base state with queries of its own, and not with those that find keys. How a reply begins
            and what it was about are then two questions. Not in the paper.
        plain_read: read a plain product of the hidden state as well, which hangs on no state and no query, wherever any
            reader is heard. In what words a reply begins hangs on the question alone, and a product that all layers add
            to learns it better than queries of length 1, which are also to find keys. It needs a ``joint_gate``. Not in
            the paper.
        choices: entries that each layer holds of a table; what is added for the best of all entries of all layers is
            added beside what is read plainly, and heard where that is. A product adds up, so that a reply to what lies
            between two questions begins like both; in a table one is chosen (softmax), or none. It needs a
            ``plain_read``. Not in the paper.
        choice_rank: numbers that layers add up to look an entry up by.
        learned_erase: learn what share of what a key finds is taken out as its value is written, by a gate of the
            token's for each head, 0 to 2; the delta rule takes out all of it. What is told as a correction is to take
            the place of what was told before, and what is told of somebody's father is to leave their mother's name
            where it is, however alike the two keys are. Not in the paper.
        delta_heads: which projections are corrected, any of q, k, v, o.
        target_layers: indices of the adapted layers; empty means all.
        target_modules: name of the attention module in a layer.
        output_init: how correction matrices start: ``zero``, ``random``, ``base_slice``, ``base_slice_fixed``.
        base_slice_ref_width: columns that ``base_slice_fixed`` takes at most.
        online_gain: scale of the starting correction matrices.
        delta_o_rmsnorm: RMSNorm on the O correction.
        delta_o_rmsnorm_eps: its epsilon.
        trainable_delta_scale: learn a scale for the corrections.
        delta_scale_init: its starting value.
        delta_scale_max: its upper bound.
        delta_scale_granularity: one scale per ``layer``, or one per corrected projection (``head``).
        delta_scale_parameterization: only ``alpha_over_rank`` exists.

    Raises:
        ConfigError: a value is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    num_state_heads: int = 1
    memory_write_granularity: str = "token"
    normalize_qk: bool = True
    couple_lambda: bool = True
    state_update_mode: str = "standard"
    rankwise_gates: bool = True
    beta_bias_init: float = -1.5
    read_gate: bool = False
    read_gate_floor: float = 0.0
    joint_gate: bool = False
    second_reader: bool = False
    third_reader: bool = False
    write_gate_floor: float = 0.0
    reply_floor: float = 0.0
    reads: str = "all"
    corrections: str = "own"
    keys: str = "own"
    own_share: float = 1.0
    fading: float = 0.0
    base_state: bool = False
    base_queries: bool = False
    plain_read: bool = False
    choices: int = 0
    choice_rank: int = 0
    learned_erase: bool = False
    delta_heads: tuple[str, ...] = PROJECTIONS
    target_layers: tuple[int, ...] = ()
    target_modules: tuple[str, ...] = field(default=("self_attn",))
    output_init: str = "zero"
    base_slice_ref_width: int = 8
    online_gain: float = 0.05
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6
    trainable_delta_scale: bool = False
    delta_scale_init: float = 1.0
    delta_scale_max: float = 2.0
    delta_scale_granularity: str = "layer"
    delta_scale_parameterization: str = "alpha_over_rank"

    def __post_init__(self) -> None:
        # JSON gives lists; a frozen, hashable value wants tuples.
        for name in ("delta_heads", "target_layers", "target_modules"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise ConfigError(f"{name} must be a list, not {shown(value)}")
            object.__setattr__(self, name, tuple(value))
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), str(f.type))
        for name in ("rank", "num_state_heads", "base_slice_ref_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {shown(getattr(self, name))}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {shown(getattr(self, name))}")
        unknown = [p for p in self.delta_heads if p not in PROJECTIONS]
        if unknown or len(set(self.delta_heads)) != len(self.delta_heads):
            raise ConfigError(f"delta_heads must be different ones of q, k, v, o, not {shown(list(self.delta_heads))}")
        if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in self.target_layers):
            raise ConfigError(f"target_layers must be layer numbers from 0, not {shown(list(self.target_layers))}")
        if len(set(self.target_layers)) != len(self.target_layers):
            raise ConfigError(f"target_layers names a layer twice: {shown(list(self.target_layers))}")
        if len(self.target_modules) != 1 or not isinstance(self.target_modules[0], str):
            raise ConfigError(f"target_modules must name one attention module, not {shown(list(self.target_modules))}")
        if not self.couple_lambda and self.state_update_mode == "no_lambda":
            # Nothing would read the gate, so a file that says so was not meant for this mode.
            raise ConfigError("state_update_mode no_lambda has no use for couple_lambda false")
        if self.corrections == "last" and (self.delta_heads != ("o",) or self.delta_o_rmsnorm):
            raise ConfigError("corrections last takes delta_heads [o] alone, without delta_o_rmsnorm")
        if self.joint_gate and self.corrections != "last":
            raise ConfigError("joint_gate is for corrections last: a layer's own can't wait for what later ones see")
        if self.second_reader and (not self.joint_gate or self.base_queries):
            raise ConfigError("second_reader takes a joint_gate, which says whose reads count, and no base_queries")
        if self.plain_read and not self.joint_gate:
            raise ConfigError("plain_read takes a joint_gate, which says where it is heard")
        if min(self.choices, self.choice_rank) < 0 or (self.choices > 0) != (self.choice_rank > 0):
            raise ConfigError("choices are looked up by choice_rank numbers: both are 1 or more, or both 0")
        if self.choices and not self.plain_read:
            raise ConfigError("choices take a plain_read, beside which they are heard")
        if self.third_reader and not self.second_reader:
            raise ConfigError("third_reader comes after a second_reader, and there is none")
        if self.keys == "pair" and self.writes_segments:
            raise ConfigError("keys pair is for memory_write_granularity token: a segment has no token before it")
        if not 0 <= self.own_share <= 1:
            raise ConfigError(f"own_share must lie between 0 and 1, not {self.own_share}")
        if self.own_share != 1 and self.keys != "pair":
            raise ConfigError("own_share is for keys pair: else a key is of the token's own hidden state alone")
        if self.base_queries and not self.base_state:
            raise ConfigError("base_queries are asked of a base_state, and there is none")
        if not 0 <= self.fading < 1:
            raise ConfigError(f"fading must lie between 0 and 1, not {self.fading}")
        if self.fading and self.keys != "pair":
            raise ConfigError("fading is for keys pair: else nothing is lent that could be passed on")
        for name in ("read_gate_floor", "write_gate_floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if not 0 <= self.reply_floor <= 1:
            raise ConfigError(f"reply_floor must lie between 0 and 1, not {self.reply_floor}")
        if self.reply_floor and self.writes_segments:
            raise ConfigError("reply_floor is for memory_write_granularity token: it goes by the gates of tokens")
        if not 0 < self.delta_scale_init < self.delta_scale_max:
            raise ConfigError(
                f"delta_scale_init must lie between 0 and delta_scale_max ({self.delta_scale_max}), "
                f"not {self.delta_scale_init}"
            )
        if self.memory_write_granularity != "token" and self.num_state_heads != 1:
            raise ConfigError("segment writes (message_mean, sentence_mean) have one state head")

    @property
    def gate_width(self) -> int:
        """Gates per layer: heads * rank when row-wise, else heads."""
        return self.num_state_heads * (self.rank if self.rankwise_gates else 1)

    @property
    def writes_segments(self) -> bool:
        """True for SSW, which writes once per segment."""
        return self.memory_write_granularity != "token"

    @property
    def needs_lambda(self) -> bool:
        """True when retention has a gate of its own."""
        return not self.couple_lambda

    def to_dict(self) -> dict[str, Any]:
        """The live keys, as they are written to JSON."""
        live = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        # Unknown to the published code; adapters made before there were such options keep their fingerprints.
        for name, off in _OURS.items():
            if live[name] == off:
                del live[name]
        return live

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeltaMemConfig:
        """Read the published JSON form.

        Raises:
            ConfigError: a key is unknown, or a retired option is switched on.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key in known:
                values[key] = value
            elif key not in _RETIRED:
                raise ConfigError(f"unknown configuration key {shown(key)}")
            elif value != _RETIRED[key] or isinstance(value, bool) != isinstance(_RETIRED[key], bool):
                raise ConfigError(
                    f"configuration key {key!r} is a retired option; only {_RETIRED[key]!r} is supported, "
                    f"not {shown(value)}"
                )
        return cls(**values)

    @classmethod
    def from_json_file(cls, path: str | Path) -> DeltaMemConfig:
        """Read `delta_mem_config.json`.

        Raises:
            ConfigError: the file is missing, is not a JSON object, or holds a bad value.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"{path} is not JSON") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path} does not hold a JSON object")
        return cls.from_dict(data)


def _check_type(name: str, value: Any, annotation: str) -> None:
    ok = True
    if annotation == "bool":
        ok = isinstance(value, bool)
    elif annotation == "int":
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif annotation == "float":
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    elif annotation == "str":
        ok = isinstance(value, str)
    if not ok:
        raise ConfigError(f"{name} must be of type {annotation}, not {shown(value)}")
