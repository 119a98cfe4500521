"""One step on places: write what was drawn, read at the places, and work out gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from deltamem.episodes.passes import Passes
from deltamem.evaluation.ordinary import divergence
from deltamem.layer import told_of
from deltamem.training.objective import SILENT, towards
from deltamem.training.places.among import Among, some_among
from deltamem.training.places.bank import Bank
from deltamem.training.places.close import TOLD_WEIGHT
from deltamem.training.places.draw import Drawn
from deltamem.training.places.lots import Ahead, Lot, Lots
from deltamem.training.places.stacked import Stacked
from deltamem.training.places.tail import Tail
from deltamem.training.recipe import Recipe
from deltamem.training.team import Team
from deltamem.training.warm_start import delta_layers

_OPEN, _SHUT = 0.95, 1e-3
"""Write gates wanted on tokens of values, and on others."""
_SHUT_WEIGHT = 4.0
_ASKING = 0.98
"""Read gate wanted where something is to be said. Without it, gates that are to be shut elsewhere shut before anything
worth reading is found, and do not open again."""
_JITTER = 0.2
"""Noise on hidden states, relative to their spread: the same few are drawn again and again, and what is learnt is to
hold for values and words that were not among them."""
_NOISE_ROWS = 2048
"""Most rows of noise that are taken at once; there are twice as many."""
_ALTERED = 1.0
"""So much, at most, of what two values of the same differ in is added to what a third one's key is made of."""
_APART, _FOUND = 0.15, 0.02
"""What a query may have with another's key, as a share of what it has with its own; and the least that is taken for."""
_FOR_SPREAD = 128
"""Told tokens whose spread noise goes by."""
_AMONG, _LIKELIEST = 6000, 4
"""Tokens that what is to be said is told apart from in a step, at most, besides all that are to be said in it; and
those that the frozen backbone thinks likeliest at each place in ordinary talk."""
_LOOKED_UP = 512
"""Places in ordinary talk that are compared with the whole vocabulary at once."""
_ROOM = 0.7
"""Most of a GPU's free memory that a bank is put into; one that takes more stays on the CPU."""


class _Asked(NamedTuple):
    """Places (P,) among hidden states, with the rows of the states they are about (P,) and the targets (P,)."""

    hidden: Tensor
    residuals: Tensor
    places: Tensor
    rows: Tensor
    targets: Tensor


class PlacesStep:
    """Works out gradients on the bank. It has the face of `CachedStep`.

    Attributes:
        bank: what is drawn from, on the device that works with it where there is room.

    Args:
        passes: backbone and memory; the memory's corrections go to the last layer.
        recipe: weights of the losses, and sizes.
        bank: what is drawn from.
        team: the processes that train together.
    """

    def __init__(self, passes: Passes, recipe: Recipe, bank: Bank, team: Team) -> None:
        self._passes, self._recipe, self._team = passes, recipe, team
        self._tail = Tail(passes.memory)
        self._lots = Lots(bank, recipe, self._tail)
        self._ahead: Ahead | None = None
        self.bank = bank = _near(bank, passes.device)
        self._generator = torch.Generator()
        self._layers = Stacked(delta_layers(passes.memory))
        spread = bank.told[:, :_FOR_SPREAD].float().std(dim=(1, 2))
        self._noise_sizes = (_JITTER * math.sqrt(12) * spread).tolist()
        noise = torch.rand(2 * _NOISE_ROWS, bank.told.shape[-1], generator=torch.Generator().manual_seed(recipe.seed))
        self._noise = (noise - 0.5).to(passes.device)
        self._among: Among
        self._likely = torch.full((len(bank.idle_residuals), min(_LIKELIEST, self._tail.vocabulary)), -1)

    def draw_ahead(self, first: int, workers: int) -> None:
        """Have processes of their own draw what the steps from `first` on look at, the same as without."""
        self._ahead = Ahead(self._lots, first, workers) if workers else None

    def backward(self, step: int) -> dict[str, float]:
        """Add the gradient of the whole batch's loss to the parameters, the same in every process.

        Args:
            step: its number, from 0, which decides what is drawn.

        Returns:
            As `CachedStep.backward` does.
        """
        lot = self._lots.draw(step) if self._ahead is None else self._ahead.next()
        recipe, team, bank, drawn = self._recipe, self._team, self.bank, lot.drawn
        self._layers = Stacked(delta_layers(self._passes.memory))
        self._generator = torch.Generator().manual_seed(lot.seed)
        self._among = self._told_apart(lot)
        state, gates, overlap = self._write(drawn, lot.others)
        sums: dict[str, float] = {}
        values = bank.values[drawn.places]
        told = _Asked(bank.places, bank.residuals, drawn.places, drawn.rows, drawn.targets)
        # Whether a value goes on is what the memory alone knows: among all that is said besides, it would count little.
        ends = ~values & bank.values[(drawn.places - 1).clamp_min(0)]
        rest = {"rest": (~values & ~ends, recipe.rest_weight), "end": (ends, recipe.rest_weight)}
        loss = self._said(told, state, {"value": (values, 1.0), **rest}, sums)
        if len(some := lot.openings):
            rows = torch.arange(len(some)) % state.shape[1]
            begun = _Asked(bank.openings, bank.opening_residuals, some, rows, bank.opening_targets[some])
            every = torch.ones(len(some), dtype=torch.bool)
            loss = loss + self._said(begun, state, {"start": (every, recipe.start_weight)}, sums)
        if len(lot.close.places):
            loss = loss + recipe.close_weight * self._close(lot.close, sums)
        idle, quiet = self._left_alone(lot, state)
        sums["ordinary"] = float(idle.detach())
        alone = recipe.ordinary_weight * idle + recipe.silence_weight * quiet
        if lot.apart.numel():
            apart = self._held_apart(lot.apart)
            sums["apart"] = float(apart.detach())
            alone = alone + recipe.apart_weight * apart
        loss = loss + (alone + recipe.addressing_weight * (gates + recipe.spread * overlap)) / team.size
        loss.backward()
        team.sum_gradients(list(self._passes.memory.parameters()))
        return self._report(sums, float(gates.detach()), float(overlap.detach()), int(values.sum()))

    @torch.no_grad()
    def _told_apart(self, lot: Lot) -> Among:
        """What is to be said in this step, and the likeliest of ordinary talk, among others."""
        bank, device = self.bank, self._passes.device
        said = [lot.drawn.targets, lot.close.targets, bank.opening_targets[lot.openings].cpu()]
        said.append(self._likeliest(lot.idle).flatten())
        return some_among(bank.candidates, torch.cat(said), _AMONG, self._generator, device)

    @torch.no_grad()
    def _likeliest(self, idle: Tensor) -> Tensor:
        """Token ids that the frozen backbone thinks likeliest at places in ordinary talk, (n, tokens): they never
        change, so they are worked out once for each place that comes up.
        """
        new = idle[self._likely[idle, 0] < 0].unique()
        for some in new.split(_LOOKED_UP):
            logits = self._tail(self.bank.idle_residuals[some].to(self._passes.device))
            self._likely[some] = logits.topk(self._likely.shape[1]).indices.cpu()
        return self._likely[idle]

    def _jittered(self, hidden: Tensor, count: int | None = None, mine: Tensor | None = None) -> Tensor:
        """Hidden states (layers, n, hidden size) with uniform noise on them: that for `mine` of `count` there are."""
        found = hidden.to(self._passes.device).float()
        for layer, size in zip(found, self._noise_sizes, strict=True):
            noise = self._noise_of(len(layer) if count is None else count)
            layer.add_(noise if mine is None else noise[mine.to(noise.device)], alpha=size)
        return found

    def _noise_of(self, count: int) -> Tensor:
        """(count, hidden size) from anywhere in the noise there is: to make it anew was a third of a step."""
        parts = []
        for start in range(0, count, _NOISE_ROWS):
            rows = min(_NOISE_ROWS, count - start)
            at = int(torch.randint(len(self._noise) - rows + 1, (), generator=self._generator))
            parts.append(self._noise[at : at + rows])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _said(
        self, asked: _Asked, state: Tensor, kinds: dict[str, tuple[Tensor, float]], sums: dict[str, float]
    ) -> Tensor:
        """The weighted losses of this process's share of what is asked; adds them up in `sums` by their kind."""
        mine = torch.tensor(self._team.share(range(len(asked.places))), dtype=torch.long)
        places = asked.places[mine]
        hidden = self._jittered(asked.hidden[:, places], len(asked.places), mine)
        bent = self._layers.bent(hidden, asked.residuals[places], state, asked.rows[mine])
        logits, targets = self._among.logits(self._tail, bent), self._among.numbers(asked.targets[mine])
        losses = F.cross_entropy(logits, targets, reduction="none")
        loss = losses.new_zeros(())
        if self._recipe.silence_weight:
            loss = self._recipe.silence_weight * self._gates(hidden, _ASKING) * len(mine) / len(asked.places) / 2
        for name, (kind, weight) in kinds.items():
            part = losses[kind[mine]].sum() / max(1, int(kind.sum()))
            sums[name] = float(part.detach())
            loss = loss + weight * part
            if name == "value":
                sums["right"] = float((self._among.likeliest(logits) == targets)[kind[mine]].sum())
        return loss

    def _close(self, drawn: Drawn, sums: dict[str, float]) -> Tensor:
        """The loss of this process's share of what is close to each other."""
        state = self._write(drawn, torch.zeros(0, dtype=torch.long))[0]
        asked = _Asked(self.bank.places, self.bank.residuals, drawn.places, drawn.rows, drawn.targets)
        never = drawn.targets == self.bank.unsaid
        return self._said(asked, state, {"close": (~never, TOLD_WEIGHT), "never": (never, 1.0)}, sums)

    # Writing

    def _write(self, drawn: Drawn, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states (layers, B, H, r, r), the loss of the gates, and the overlap of keys of different facts."""
        device, bank = self._passes.device, self.bank
        config, valid = self._passes.memory.config, drawn.valid.to(device)
        told = self._jittered(bank.told[:, drawn.told.flatten()]).unflatten(1, drawn.told.shape)
        other = bank.other[:, others].to(device).float()
        # What is said of a value is its own; what it is found by is to fit any value that is told of the same.
        far = _ALTERED * (2 * torch.rand(drawn.told.shape, generator=self._generator) - 1)
        found_by, before, said = self._altered(told, bank.told, drawn, far), None, told
        if config.keys == "pair":
            before = self._jittered(bank.before[:, drawn.told.flatten()]).unflatten(1, drawn.told.shape)
            before = self._altered(before, bank.before, drawn, far)
        if not torch.equal(drawn.said, drawn.told):
            said = self._jittered(bank.said(drawn.said.flatten())).unflatten(1, drawn.told.shape)
        state, products = self._layers.written(found_by, before, said, valid)
        opened = self._layers.write_gates(told.flatten(1, 2))[:, valid.flatten()]
        gates = towards(opened, _OPEN)
        if other.shape[1]:
            gates = gates + _SHUT_WEIGHT * towards(self._layers.write_gates(other), _SHUT)
        return state, gates, self._overlap(products, drawn)

    def _altered(self, hidden: Tensor, bank: Tensor, drawn: Drawn, far: Tensor) -> Tensor:
        """Hidden states (layers, B, T, hidden size) moved by some of what `drawn.other` differ from them in."""
        where = drawn.other != drawn.told
        found = hidden.clone()
        apart = bank[:, drawn.other[where]].to(hidden) - bank[:, drawn.told[where]].to(hidden)
        found[:, where] += far[where][:, None].to(hidden) * apart
        return found

    def _overlap(self, products: Tensor, drawn: Drawn) -> Tensor:
        """Mean squared cosine of keys of different facts in one history, from products (layers, B, T, n)."""
        config = self._passes.memory.config
        if not self._recipe.spread:
            return products.new_zeros(())
        valid, about = drawn.valid.to(products.device), drawn.about.to(products.device)
        apart = (about[:, :, None] != about[:, None]) & valid[:, :, None] & valid[:, None]
        if not apart.any():
            return products.new_zeros(())
        keys = told_of(config, products.flatten(0, 1)).k.unflatten(0, products.shape[:2])
        crossing = torch.einsum("lbshr,lbthr->bsthl", keys, keys).square()
        return crossing[apart].mean() if config.normalize_qk else crossing.sum() * 0

    # Reading

    def _held_apart(self, numbers: Tensor) -> Tensor:
        """How far queries are from finding their own key alone, told before or after another topic's.

        What a layer reads counts for as much as it is heard. Of two facts written one after the other a query finds
        q·k - e' (k·k') (q·k') of its own, where that came first and e' is what the other one erases, and q·k' of the
        other one. The mean over queries of the sums, over others, of the square of what is missing.

        Args:
            numbers: (2, n), of told tokens and places of one topic each.
        """
        bank, config = self.bank, self._passes.memory.config
        told, places = numbers
        hidden = self._jittered(bank.told[:, told])
        before = self._jittered(bank.before[:, told]) if config.keys == "pair" else None
        written = told_of(config, self._layers.told_products(hidden, before, hidden))
        keys, queries = written.k, self._layers.queries(self._jittered(bank.places[:, places]))
        heard = self._layers.heard(
            (written.gates.write * written.v).detach(), self._tail.directions(bank.told_ids[told])
        )
        found = torch.einsum("lihr,ljhr->lijh", queries, keys)
        overlap = torch.einsum("lihr,ljhr->lijh", keys, keys * written.gates.erase.mean(-1, keepdim=True).detach())
        own = torch.einsum("liih,lh->i", found, heard)
        lost = torch.einsum("lijh,lh->ij", found * (1 + overlap), heard)
        missing = (lost / own.clamp_min(_FOUND)[:, None] - _APART).clamp_min(0)
        return (missing * (1 - torch.eye(len(found[0]), device=found.device))).square().sum(1).mean()

    def _gates(self, hidden: Tensor, wanted: float) -> Tensor:
        """How far read gates are from what is wanted of them at hidden states (layers, n, hidden size)."""
        if not self._passes.memory.config.read_gate:
            return hidden.new_zeros(())
        return towards(self._layers.read_gates(hidden), wanted)

    def _left_alone(self, lot: Lot, state: Tensor) -> tuple[Tensor, Tensor]:
        """Of ordinary talk, and of what tells nothing: the KL to the frozen backbone, and how far read gates are from
        being shut.
        """
        bank, device, some, others = self.bank, self._passes.device, lot.idle, lot.others
        hidden = torch.cat([bank.idle[:, some], bank.other[:, others]], dim=1).to(device).float()
        residuals = torch.cat([bank.idle_residuals[some], bank.other_residuals[others]]).to(device)
        if not len(residuals):
            return hidden.new_zeros(()), hidden.new_zeros(())
        with torch.no_grad():
            frozen = self._among.logits(self._tail, residuals)
        rows = torch.arange(len(residuals)) % state.shape[1]
        found = self._among.logits(self._tail, self._layers.bent(hidden, residuals, state, rows))
        quiet = self._gates(hidden, SILENT) if self._recipe.silence_weight else hidden.new_zeros(())
        return divergence(found, frozen) / len(residuals), quiet

    def _report(self, sums: dict[str, float], gates: float, overlap: float, values: int) -> dict[str, float]:
        recipe = self._recipe
        of_close = ("close", "never") if recipe.close_weight else ()
        names = ("right", "value", "start", "rest", "end", *of_close)
        own = torch.tensor([sums.get(name, 0.0) for name in names], device=self._passes.device)
        found = dict(zip(names, self._team.sum(own).tolist(), strict=True))
        right = found.pop("right")
        loss = found["value"] + recipe.start_weight * found["start"]
        loss += recipe.rest_weight * (found["rest"] + found["end"])
        loss += recipe.ordinary_weight * sums["ordinary"] + recipe.addressing_weight * (gates + recipe.spread * overlap)
        if of_close:
            loss += recipe.close_weight * (TOLD_WEIGHT * found["close"] + found["never"])
        if "apart" in sums:
            found["apart"] = sums["apart"]
            loss += recipe.apart_weight * sums["apart"]
        ordinary = {"ordinary": sums["ordinary"], "gates": gates, "overlap": overlap, "loss": loss}
        return found | ordinary | {"accuracy": right / values if values else 0.0}


def _near(bank: Bank, device: torch.device) -> Bank:
    """The bank on the device that works with it, if there is room or most of it is there already."""
    if bank.told.device == device:
        return bank.on(device)
    if device.type != "cuda" or bank.bytes > _ROOM * torch.cuda.mem_get_info(device)[0]:
        return bank
    return bank.on(device)
