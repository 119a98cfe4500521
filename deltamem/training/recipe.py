"""The knobs of a training run, with the values that made the adapter that ships."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a run.

    Attributes:
        steps: optimizer steps.
        batch: histories per step, over all processes; each is asked about all its facts, up to `questions` in all.
        questions: most questions per step.
        accumulate: parts a step is cut into, one after another, to save memory.
        bucket: how many histories of like length are written together (and twice as many questions read).
        window: longest history, in tokens, that is written with itself in the context; the state carries the rest.
        truncate: how many of its last windows the gradient goes back through.
        learning_rate: peak of AdamW.
        fitted_rate: learning rate of W_q, W_k and what asks the base state, relative to `learning_rate`. They begin
            fitted, and Adam's steps do not get smaller where there is little to learn.
        value_rate: that of W_v.
        gate_rate: that of the write gates, and of those of what is erased.
        output_rate: that of the corrections.
        base_rate: that of the base state, whose numbers are as large as a state's.
        betas: of AdamW.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which a cosine takes the rate to zero.
        minutes: a run ends when its steps have taken so long, if it does not after `steps`, and the rate goes by
            whichever is nearer; 0 for as long as the steps take.
        clip: largest gradient norm.
        start_weight: weight of an answer's first token beside the value's.
        rest_weight: weight of the answer's other tokens.
        addressing_weight: weight of the addressing loss (`training/addressing.py`), 0 leaves it out.
        spread: weight, within it, of the overlap between keys of different facts.
        apart_weight: weight of queries finding their own key and none of those of others of its sort, where corrections
            go to the last layer.
        close_weight: weight of telling what was told from what is close to it and was not told (`places/close.py`), in
            steps on places and in those of reading, where corrections go to the last layer.
        cached_steps: how many of the steps, the first ones, are on hidden states of the frozen backbone that are worked
            out once (`training/cached`).
        bank: turns with facts that those draw from. A turn takes 1.5 MB with 26 layers of smollm2-135m: 12,000 of them
            took 19 GB. Where corrections go to the last layer it is episodes, of 1 MB each.
        stock: episodes besides those that are told and not asked about, where corrections go to the last layer. One of
            them takes 2 MB.
        key_steps: steps in which keys and queries alone learn to find each other, before the first of those on places.
        say_steps: steps in which values, corrections and the base state alone learn to say what is read, after those.
        gate_steps: steps in which write gates, and then read gates, alone learn to be open on all tokens of a value,
            after those.
        fit_erase: fit what is erased, after those, in closed form (`DeltaMemConfig.learned_erase`).
        read_steps: steps in which queries, read gates, the base state and, with a `close_weight`, corrections alone
            learn how replies begin and to read what is written, after all others, where corrections go to the last
            layer.
        joint_steps: steps in which the joint gate, if there is one, alone learns where to read, after all but those.
        number_steps: steps in which an adapter that knows words alone learns numbers as well, and leaves what it knows
            as it is, after all others, where corrections go to the last layer.
        chat_steps: steps in which a second reader learns what is asked in the chat in which it was told, after those;
            nothing that is written changes.
        people_steps: steps in which a third reader learns what people close to one do and are, after those.
        begin_steps: steps in which what is read plainly alone learns in what words replies begin, and as many in which
            a table beside it does, last of all, where there is a joint gate; nothing that is written changes.
        new_keys: keys and queries of the adapter a run begins with begin anew, as fitted ones, where corrections go to
            the last layer; the rest goes on.
        keep_writing: no step changes keys, values or write gates: what was written by the adapter a run began with
            means the same to the one it leaves.
        vocabulary: how often each of the tokenizer's word pieces is told, in place of values of the bank, where
            corrections go to the last layer. Once takes 1.5 GB with 26 layers of smollm2-135m.
        easy_steps: in so many steps on places, the first, little is asked that was never told, and no more than a few
            facts are told: from nothing, all that is learnt otherwise is to say that nothing is known.
        made_up: conversations that the backbone makes up itself, beside the ordinary prompts, where corrections go to
            the last layer.
        impersonal: questions about each noun that sound like one about oneself and are left alone, where corrections
            go to the last layer; with any, those about no noun are as well.
        relatives: share of a bank's episodes that tell what people close to one do and are, where corrections go to the
            last layer; with `people_steps` and no share, two thirds, with `begin_steps` a third.
        cached_questions: questions per cached step.
        cached_facts: most facts in a history of one.
        cached_talk: most turns of small talk in one.
        ordinary: ordinary questions per step on which memory is to change nothing.
        ordinary_weight: weight of the KL to the frozen backbone there.
        distill_weight: weight of the KL to the frozen backbone that has the whole history in its context.
        contrast_weight: weight of telling the right state from another conversation's and from an empty one.
        sparsity_weight: weight of the squared distance of the mean write gate from `gate_target`.
        gate_target: see `sparsity_weight`.
        silence_weight: weight of read gates being shut in ordinary talk. Recall's gradient opens them past their floor
            otherwise, step by step, until memory is read in all that is said.
        reply_tokens: length of the backbone's own replies that are put into histories.
        seed: of everything random.
        local_gradient: let the gradient reach the writer through the state alone (see `DeltaMemory.writing`).
        mark: accuracy on values that ends a stage of the curriculum.
        eval_every: steps between evaluations on held-out episodes.
        eval_questions: questions per number of facts in one of those.
        patience: evaluations without a better one after which a run stops early; 0 never does.
        save_every: steps between checkpoints.
    """

    steps: int = 1500
    batch: int = 16
    questions: int = 32
    accumulate: int = 1
    bucket: int = 4
    window: int = 1024
    truncate: int = 4
    learning_rate: float = 2e-3
    fitted_rate: float = 0.1
    value_rate: float = 0.1
    gate_rate: float = 0.1
    output_rate: float = 1.0
    base_rate: float = 10.0
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 30
    decay: float = 0.4
    minutes: float = 0.0
    clip: float = 1.0
    start_weight: float = 1.0
    rest_weight: float = 0.3
    addressing_weight: float = 1.0
    spread: float = 2.0
    apart_weight: float = 0.0
    close_weight: float = 0.0
    cached_steps: int = 0
    bank: int = 4000
    stock: int = 0
    key_steps: int = 0
    say_steps: int = 0
    gate_steps: int = 0
    fit_erase: bool = False
    read_steps: int = 0
    joint_steps: int = 0
    number_steps: int = 0
    chat_steps: int = 0
    people_steps: int = 0
    begin_steps: int = 0
    new_keys: bool = False
    keep_writing: bool = False
    vocabulary: int = 0
    easy_steps: int = 0
    made_up: int = 0
    impersonal: int = 0
    relatives: float = 0.0
    cached_questions: int = 64
    cached_facts: int = 8
    cached_talk: int = 8
    ordinary: int = 4
    ordinary_weight: float = 1.0
    distill_weight: float = 0.0
    contrast_weight: float = 0.0
    sparsity_weight: float = 0.0
    gate_target: float = 0.02
    silence_weight: float = 0.0
    reply_tokens: int = 20
    seed: int = 0
    local_gradient: bool = True
    mark: float = 0.6
    eval_every: int = 100
    eval_questions: int = 32
    patience: int = 0
    save_every: int = 50

    @property
    def only_erasing(self) -> bool:
        """Whether what is erased is all that is fitted: that takes nothing but what was told."""
        return self.fit_erase and not self._steps_before_the_end and not self.steps_at_the_end

    @property
    def readers(self) -> int:
        """How many readers those steps take."""
        return 3 if self.people_steps else 1 + (self.number_steps + self.chat_steps > 0)

    @property
    def only_numbers(self) -> bool:
        """Whether steps on numbers, in chats and on people close to one are all there is."""
        alone = 0 < self.number_steps + self.chat_steps + self.people_steps == self.steps_at_the_end
        return alone and not self._steps_before_the_end and not self.fit_erase

    @property
    def _steps_before_the_end(self) -> int:
        return self.steps + self.key_steps + self.say_steps + self.gate_steps

    @property
    def ends_on_places(self) -> bool:
        """Whether a run needs its places once its steps are over, or has no steps of that kind at all."""
        return bool(self.steps_at_the_end or not self.steps)

    @property
    def steps_at_the_end(self) -> int:
        """How many there are on places after all others."""
        at_last = self.number_steps + self.chat_steps + self.people_steps
        return self.joint_steps + self.read_steps + at_last + self.begin_steps

    def scale(self, name: str) -> float:
        """Learning rate of a tensor of the adapter, relative to `learning_rate`."""
        if self.keep_writing and name.startswith(("memory_k", "memory_v", "beta", "lambda", "erase")):
            return 0.0
        if name.startswith("joint_gate"):
            return 0.0  # a clamp has no gradient where it is open, as it is at first; it is learnt on its own
        if name.startswith(("plain_read", "choice")):
            return 0.0  # nothing of how replies begin is in those steps
        if name in ("memory_q_proj", "memory_k_proj", "memory_base_proj"):
            return self.fitted_rate
        if name == "memory_v_proj":
            return self.value_rate
        if name.startswith(("beta", "lambda", "erase")):
            return self.gate_rate
        if name == "base_state":
            return self.base_rate
        return self.output_rate if name.startswith("delta") else 1.0

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate at a step, counted from 0, that begins after so many seconds of the run."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = max(step / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)
        share = min(1.0, max(0.0, done - (1 - self.decay)) / max(self.decay, 1e-9))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def over(self, step: int, seconds: float) -> bool:
        """Whether a run ends before a step, counted from 0, that would begin after so many seconds of it."""
        return step >= self.steps or 0 < 60 * self.minutes <= seconds

    def rng(self, step: int) -> random.Random:
        """All randomness of a step, counted from 0, comes from its number, so a resumed run is the unbroken one."""
        return random.Random(f"{self.seed}-{step}")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for checkpoints and cards."""
        return asdict(self)
