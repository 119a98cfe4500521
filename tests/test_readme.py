"""What README quotes is what the commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\$ deltamem ([^\n]*--help)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_help_texts_are_quoted() -> None:
    assert {words for words, _ in QUOTED} >= {"--help", "chat --help"}


@pytest.mark.parametrize(("words", "quoted"), QUOTED, ids=[q[0] for q in QUOTED])
def test_quoted_help_is_what_is_printed(words: str, quoted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'deltamem'; from deltamem_cli.app import main; main()",
         *words.split()],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"},
    )  # fmt: skip
    printed = [line.rstrip() for line in done.stdout.strip().splitlines()]
    assert printed == [line.rstrip() for line in quoted.strip().splitlines()]


def test_the_first_commands_are_there() -> None:
    assert README.count("<!-- test command -->") == 1
    block = README.split("<!-- test command -->")[1].split("<!-- end -->")[0]
    assert "pip install" in block and "pytest" in block
