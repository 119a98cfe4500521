"""500 cases of bad input; `python scripts/trust_check.py fuzz` runs 10,000."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.trust.fuzzing import CASES, Seeds, fresh, run_case


def test_bad_input_is_refused_in_words_and_left_alone(tmp_path: Path, tokenizer: Any) -> None:
    seeds = Seeds(tmp_path / "seeds", tokenizer)
    kinds = set()
    for number in range(500):
        folder = fresh(tmp_path, number)
        kinds.add(run_case(number, seeds, folder))
        shutil.rmtree(folder)
    assert len(kinds) == len(CASES)
