"""Whole recipes: ours, and the published one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deltamem.config import DeltaMemConfig
from deltamem.training.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A configuration, a recipe, and whether keys, gates and values are fitted first."""

    config: DeltaMemConfig
    recipe: Recipe
    warm_start: bool
    curriculum: bool


# Most steps on cached hidden states. Learning rates differ as the sizes of the numbers do. It leaves ordinary talk
# alone; free-running replies are behind those of the whole passes so far.
_CACHED = Preset(
    DeltaMemConfig(
        delta_heads=("o",), state_update_mode="no_lambda", rankwise_gates=False, read_gate=True, reads="reply"
    ),
    Recipe(cached_steps=1200, value_rate=2.5, gate_rate=5.0, output_rate=3.0),
    warm_start=True,
    curriculum=True,
)

# Nothing that is told or asked moves a hidden state before the last layer, so no step needs a call of the backbone.
# What is read is added sixteenfold: half of it was hardly heard beside the residual. At four times the rate the first
# twenty steps lose most of what the start can say. With r = 64 the start says 80 % of four facts, with r = 8 48 %
# (benchmarks/places.md).
_PLACES = Preset(
    replace(
        _CACHED.config,
        rank=64,
        alpha=16.0 * 64,
        read_gate_floor=0.92,
        joint_gate=True,
        write_gate_floor=0.4,
        base_state=True,
        corrections="last",
        keys="pair",
        own_share=0.2,
    ),
    Recipe(
        steps=4500,
        cached_steps=4500,
        bank=6400,
        cached_questions=192,
        cached_facts=16,
        vocabulary=1,
        easy_steps=1000,
        made_up=200,
        impersonal=5,
        joint_steps=1200,
        read_steps=400,
        learning_rate=1e-3,
        fitted_rate=1.0,
        value_rate=1.0,
        gate_rate=4.0,
        output_rate=1.0,
        base_rate=8.0,
        betas=(0.9, 0.98),
        warmup=20,
        decay=1.0,
        clip=5.0,
        start_weight=2.5,
        rest_weight=1.0,
        spread=0.2,
        ordinary_weight=8.0,
        silence_weight=4.0,
        eval_every=1000,
        save_every=500,
    ),
    warm_start=True,
    curriculum=True,
)

PRESETS: dict[str, Preset] = {
    "deltamem": Preset(
        DeltaMemConfig(delta_heads=("q", "o"), state_update_mode="no_lambda", output_init="base_slice"),
        Recipe(),
        warm_start=True,
        curriculum=True,
    ),
    "cached": _CACHED,
    "places": _PLACES,
    # What an adapter of the one above is carried on with, through the whole backbone: it wants --from.
    "continued": replace(
        _CACHED,
        config=replace(_CACHED.config, read_gate_floor=0.45, write_gate_floor=0.3, base_state=True),
        recipe=replace(
            _CACHED.recipe,
            cached_steps=0,
            steps=400,
            batch=12,
            questions=24,
            learning_rate=5e-4,
            warmup=4,
            decay=0.6,
            start_weight=1.5,
            rest_weight=0.6,
            addressing_weight=0.3,
            ordinary=6,
            ordinary_weight=2.0,
            silence_weight=1.0,
            mark=0.65,
        ),
    ),
    # DESIGN section 2: cross-entropy on the answer alone, gradient through the writing pass as well.
    "published": Preset(
        DeltaMemConfig(delta_heads=("q", "o"), state_update_mode="standard", output_init="base_slice_fixed"),
        Recipe(
            steps=70,
            batch=32,
            questions=32,
            learning_rate=2e-4,
            fitted_rate=1.0,
            value_rate=1.0,
            gate_rate=1.0,
            output_rate=1.0,
            betas=(0.9, 0.999),
            warmup=7,
            decay=1.0,
            rest_weight=1.0,
            addressing_weight=0.0,
            ordinary=0,
            local_gradient=False,
        ),
        warm_start=False,
        curriculum=False,
    ),
}
