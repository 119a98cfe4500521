"""The command line as a real process, on a tiny backbone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deltamem.profiles import ProfileInfo, save_profile
from deltamem.profiles.file import empty_profile

CLI = [sys.executable, "-m", "deltamem_cli"]


class Runner:
    """Runs `deltamem` with the tiny backbone and adapter, and a home of the test's own."""

    def __init__(self, home: Path, backbone: Path, adapter: Path) -> None:
        self.home = home
        self.model = ["--backbone", str(backbone), "--adapter", str(adapter)]
        self.environment = {**os.environ, "DELTAMEM_HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}

    def __call__(self, *words: str, stdin: str | None = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*CLI, *words], input=stdin, capture_output=True, text=True, env=self.environment, timeout=300
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def chat(self, *words: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        return self("chat", *words, *self.model, "--temperature", "0", "--max-tokens", "8", stdin=stdin, code=code)

    def error(self, *words: str, stdin: str = "") -> str:
        done = self(*words, stdin=stdin, code=1)
        assert done.stdout == ""
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr
        return lines[0]


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Path, tiny_adapter: Path) -> Runner:
    return Runner(tmp_path / "home", tiny_backbone, tiny_adapter)


def show(run: Runner, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run("profiles", "show", name, "--json").stdout)
    return data


def test_turns_add_up_across_processes_and_stdout_is_the_reply_alone(run: Runner) -> None:
    first = run.chat("hello", "--profile", "work", "--json")
    turn = json.loads(first.stdout)
    assert turn["prompt"] == "hello" and turn["profile"] == "work" and turn["reply_tokens"] <= 8
    second = run.chat("--profile", "work", "--lines", "--json", stdin="one\n\ntwo\n")
    assert [json.loads(line)["prompt"] for line in second.stdout.splitlines()] == ["one", "two"]
    info = show(run, "work")
    assert info["turns"] == 3 and info["tokens"] > turn["written_tokens"]
    assert {"backbone", "adapter", "turns", "tokens", "created", "updated"} <= info.keys()

    # Piped input is one message; a reply in plain text is the reply and a line's end.
    plain = run.chat("--profile", "other", stdin="several\nlines\n").stdout
    as_json = json.loads(run.chat("--profile", "again", "--json", stdin="several\nlines\n").stdout)
    assert as_json["prompt"] == "several\nlines" and plain.rstrip("\n") == as_json["reply"].rstrip("\n")

    # Read-only answers from the profile and leaves it alone.
    path = Path(info["path"])
    before = path.read_bytes(), path.stat().st_mtime_ns
    run.chat("hello", "--profile", "work", "--read-only")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before

    listed = json.loads(run("profiles", "--json").stdout)
    assert {p["name"]: p["turns"] for p in listed} == {"again": 1, "other": 1, "work": 3}
    assert "work" in run("profiles").stdout


def test_profiles_are_moved_about(run: Runner, tmp_path: Path) -> None:
    run.chat("hello", "--profile", "a")
    run("profiles", "copy", "a", "b")
    run("profiles", "rename", "b", "c")
    file = tmp_path / "mail.safetensors"
    run("profiles", "export", "c", str(file))
    run("profiles", "delete", "c", "--yes")
    run("profiles", "import", str(file), "--name", "d")
    assert {p["name"] for p in json.loads(run("profiles", "list", "--json").stdout)} == {"a", "d"}
    assert show(run, str(file))["turns"] == show(run, "d")["turns"] == 1
    assert "needs --yes" in run.error("profiles", "delete", "d")
    assert "'a' already" in run.error("profiles", "import", str(file), "--name", "a")
    bundle = tmp_path / "mail.deltamem"
    run("profiles", "export", "a", str(bundle))
    run("profiles", "import", str(bundle), "--name", "e")
    kinds = [e["kind"] for e in json.loads(run("profiles", "log", "e", "--json").stdout)["entries"]]
    assert kinds == ["begin", "turn"]
    run("profiles", "merge", "e", "d", "--weight", "0.5")
    assert show(run, "e")["turns"] == 2
    assert "must end in" in run.error("profiles", "export", "a", str(tmp_path / "a.zip"))


def test_inspect_state(run: Runner) -> None:
    run.chat("hello", "--profile", "work")
    data = json.loads(run("inspect-state", "work", "--json", "--layer", "1").stdout)
    (head,) = data["heads"]
    assert head["layer"] == 1 and head["norm"] > 0 and 1 <= head["effective_rank"] <= 8 and head["change"] == 1.0
    matrix = data["matrices"][0]
    assert max(abs(x) for row in matrix for x in row) == pytest.approx(abs(head["largest"]))
    text = run("inspect-state", "work", "--layer", "1").stdout
    assert "layer 1, head 0" in text and f"{matrix[0][0]:.3f}" in text
    assert "layers 0 to 2" in run.error("inspect-state", "work", "--layer", "9")


def test_inspect_state_in_all_its_forms(run: Runner, tmp_path: Path) -> None:
    assert "memory   " in run("inspect-state", str(empty_profile_file(tmp_path))).stdout
    for text in ("hello", "there", "again"):
        run.chat(text, "--profile", "work")
    summary = run("inspect-state", "work").stdout
    assert "how full" in summary and "3 turns" in summary and "the last 3 by 100 %" in summary
    seen = json.loads(run("inspect-state", "work", "--json").stdout)["overview"]
    assert 0 < seen["fullness"] <= 1 and seen["lately_turns"] == 3 and not seen["empty"]

    moments = json.loads(run("inspect-state", "work", "--turns", "--json").stdout)
    assert [m["turns"] for m in moments] == [0, 1, 2, 3] and moments[0]["norm"] == 0 < moments[1]["norm"]
    assert all(len(m["gates"]) == 3 and all(0 < g < 1 for g in m["gates"]) for m in moments[1:])
    assert run("inspect-state", "work", "--turns").stdout.count(" turn ") == 3

    run.chat("hello", "--profile", "other")
    apart = json.loads(run("inspect-state", "work", "--diff", "other", "--json").stdout)
    assert apart["change"] > 0 and json.loads(run("profiles", "diff", "other", "work", "--json").stdout) == apart
    assert json.loads(run("inspect-state", "work", "--head", "0", "--json").stdout)["heads"][2]["layer"] == 2
    assert "no head 4" in run.error("inspect-state", "work", "--head", "4")

    page, picture = tmp_path / "out.html", tmp_path / "out.png"
    run("inspect-state", "work", "--report", str(page), "--plot", str(picture))
    html = page.read_text(encoding="utf-8")
    assert str(tmp_path) not in html, "a report may be given away"
    assert "data:image/png" in html and "img-src data:" in html  # without the second a browser shows no heat map
    assert html.count("<svg") == 3 and "http://" not in html.replace("http://www.w3.org", "") and "<script" not in html
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "can't draw" in run.error("inspect-state", "work", "--plot", str(tmp_path / "out.nothing"))
    assert "can't write" in run.error("inspect-state", "work", "--report", str(tmp_path / "no" / "out.html"))


def test_probing_shows_what_the_memory_does(run: Runner) -> None:
    run.chat("hello", "--profile", "work")
    found = json.loads(run("inspect-state", "work", "--probe", "who am I?", *run.model, "--json").stdout)
    assert set(found["replies"]) == {"with", "without", "shuffled"}
    assert sorted(layer for layer, _ in found["layers"]) == [0, 1, 2]
    assert max(kl for _, kl in found["divergence"]) > 0 and max(kl for _, kl in found["layers"]) > 0
    assert all(0 <= p <= 1 and 0 <= q <= 1 for _, p, q in found["first"])
    text = run("inspect-state", "work", "--probe", "who am I?", *run.model).stdout
    assert "with a shuffled one" in text and "layer left out" in text
    assert "takes a question" in run.error("inspect-state", "work", "--probe", " ", *run.model)


def test_looking_at_a_profile_loads_no_torch(run: Runner) -> None:
    run.chat("hello", "--profile", "work")
    code = "import sys; from deltamem_cli.app import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    for words in (["inspect-state", "work"], ["profiles", "log", "work"], ["profiles", "show", "work"], ["profiles"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=run.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


def empty_profile_file(folder: Path) -> Path:
    path = folder / "empty.safetensors"
    info = ProfileInfo("b", "f" * 16, "adapter", "a" * 16, {"rank": 4, "num_state_heads": 1}, (0, 1))
    save_profile(path, empty_profile(info))
    return path


def test_remember_reads_files_and_chats(run: Runner, tmp_path: Path) -> None:
    notes, chat = tmp_path / "notes.txt", tmp_path / "chat.jsonl"
    notes.write_text("First paragraph.\n\n" + "Second, a long one. " * 400)
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n")
    done = run("remember", str(notes), str(chat), "--profile", "work", "--json", *run.model)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    # Blocks lose the blank line between them and a space where a long one is cut.
    assert abs(first["tokens"] - len(notes.read_text())) <= 8 and second["tokens"] == 2
    assert show(run, "work")["tokens"] == first["tokens"] + second["tokens"]
    chat.write_text('{"messages": [{"role": "user"}]}\n')
    assert f"{chat}, line 1" in run.error("remember", str(chat), *run.model)
    notes.write_bytes(b"\xff\xfe bad")
    assert "not UTF-8" in run.error("remember", str(notes), *run.model)
    assert "no file" in run.error("remember", str(tmp_path / "none"), *run.model)


def test_what_a_user_gets_wrong_is_one_line(run: Runner, tmp_path: Path, tiny_backbone: Path) -> None:
    assert "no profile name" in run.error("chat", "hi", "--profile", "../x")
    assert "no backbone 'nothing'" in run.error("chat", "hi", "--backbone", "nothing")
    assert "no profile 'gone'" in run.error("profiles", "show", "gone")
    assert "nothing to answer" in run.error("chat", *run.model)
    assert "no adapter" in run.error("chat", "hi", "--backbone", str(tiny_backbone), "--adapter", "gone")
    assert "temperature must be" in run.error("chat", "hi", "--temperature", "-1", *run.model)
    assert "more than" in run.error("chat", "hi", "--context", "100000", *run.model)
    assert "this runs on cpu" in run.error("chat", "hi", "--compile", "on", "--device", "cpu", *run.model)
    assert "no profile '~nobody-of-that-name/x" in run.error("profiles", "show", "~nobody-of-that-name/x.safetensors")
    assert "no profile name" in run.error("profiles", "show", "x" * 300 + ".safetensors")
    assert "too long" in run.error("remember", "x" * 300, *run.model)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x00" * 64)
    assert "damaged or no profile" in run.error("chat", "hi", "--profile", str(bad), *run.model)
    assert bad.read_bytes() == b"\x00" * 64


def test_a_profile_of_another_adapter_is_refused(run: Runner, tmp_path: Path) -> None:
    from tests.conftest import make_memory, make_model

    run.chat("hello", "--profile", "work")
    make_memory(make_model(), seed=99).save_pretrained(tmp_path / "two")
    message = run.error("chat", "hi", "--profile", "work", *run.model[:2], "--adapter", str(tmp_path / "two"))
    assert run.model[3] in message and str(tmp_path / "two") in message


def test_without_an_adapter_the_chat_is_frozen_and_says_so(run: Runner) -> None:
    done = run("chat", "hi", *run.model[:2], "--max-tokens", "4")
    assert "remembers nothing" in done.stderr and "train-adapter" in done.stderr and done.stdout.endswith("\n")
    assert not (run.home / "profiles").exists()


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_interrupting_keeps_what_was_said(run: Runner, sent: str, code: int) -> None:
    words = ["chat", "hi", "--profile", "work", "--max-tokens", "3000", *run.model]
    process = subprocess.Popen(
        [*CLI, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=run.environment
    )
    assert process.stdout is not None
    assert process.stdout.read(1)  # the reply has begun
    process.send_signal(getattr(signal, sent))
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == code and len(rest) < 3000 and b"Traceback" not in errors
    info = show(run, "work")
    assert info["turns"] == 1 and 2 < info["tokens"] < 2000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_memory_that_runs_out_is_told_and_costs_the_turn_alone(
    tmp_path: Path, tokenizer: Any, tiny_adapter: Path
) -> None:
    """After a first turn the process is held to a little more address space than it has: a long one needs more.

    Not to what it has: the tokenizer, in Rust, ends the process where it finds no memory for itself.
    """
    import resource

    from tests.conftest import make_model

    make_model(intermediate_size=32768).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    run = Runner(tmp_path / "home", tmp_path / "wide", tiny_adapter)
    path = run.home / "profiles" / "work.safetensors"
    words = [*CLI, "chat", "--lines", "--json", "--profile", "work", "--max-tokens", "4", *run.model]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=run.environment
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["prompt"] == "hello"
    before = path.read_bytes()
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    resource.prlimit(process.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20),) * 2)
    said, errors = process.communicate(b"and now something longer " * 60 + b"\n", timeout=120)
    lines = [line for line in errors.decode().splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and not said and b"Traceback" not in errors, errors[-3000:]
    assert len(lines) == 1 and "too little free memory" in lines[0] and "the turn was taken back" in lines[0]
    assert path.read_bytes() == before and show(run, "work")["turns"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_is_told_and_costs_the_turn_alone(run: Runner) -> None:
    """A limit on the size of files stands in for the disk: writing fails half way, as it does there."""
    run.chat("hello", "--profile", "work")
    folder = run.home / "profiles"
    before = (folder / "work.safetensors").read_bytes()
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "from deltamem_cli.app import main\nmain()"
    )
    words = ["chat", "again", "--profile", "work", *run.model, "--temperature", "0", "--max-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=run.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: can't ")], done.stderr
    assert (folder / "work.safetensors").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))
    run.chat("once more", "--profile", "work")  # the history goes on where it was whole
    assert [e["turns"] for e in json.loads(run("profiles", "log", "work", "--json").stdout)["entries"]] == [0, 1, 2]


def test_the_past_of_a_profile(run: Runner) -> None:
    run.chat("--profile", "work", "--lines", stdin="one\ntwo\nthree\n")
    assert "is called 'before'" in run("profiles", "tag", "work", "before").stderr
    log = json.loads(run("profiles", "log", "work", "--json").stdout)
    assert [e["turns"] for e in log["entries"]] == [0, 1, 2, 3] and log["entries"][3]["label"] == "before"
    run("profiles", "rewind", "work", "--to", "1")
    assert show(run, "work")["turns"] == 1
    assert "2 further states" in run("profiles", "log", "work").stderr
    run("profiles", "branch", "work", "trip")
    run.chat("four", "--profile", "trip")
    assert (show(run, "trip")["turns"], show(run, "work")["turns"]) == (2, 1)
    assert json.loads(run("profiles", "diff", "work", "trip", "--json").stdout)["change"] > 0
    run("profiles", "rewind", "work", "--to", "before")
    assert show(run, "work")["turns"] == 3
    assert "3 states" in run("profiles", "prune", "work").stderr
    assert "no turn and no label '2'" in run.error("profiles", "rewind", "work", "--to", "2")


def test_models_and_doctor(run: Runner) -> None:
    entries = {e["name"]: e for e in json.loads(run("models", "--json").stdout)}
    assert entries["smollm2-135m"]["licence"] == "Apache-2.0" and len(entries["qwen3-4b"]["revision"]) == 40
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["packages"]["torch"] != "not installed" and facts["profiles"] == str(run.home / "profiles")
    assert run("models", "path", run.model[1]).stdout.strip() == run.model[1]
    assert "deltamem models pull" in run.error("models", "path", "org/none")


def test_help_needs_no_torch_and_version_is_the_package_s() -> None:
    code = (
        "import sys; sys.argv = ['deltamem', '--help']\n"
        "from deltamem_cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "bad = {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    from deltamem import __version__

    done = subprocess.run([*CLI, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"deltamem {__version__}"


@pytest.mark.parametrize("words", [["chat"], ["remember"], ["inspect-state"], ["train-adapter"], ["doctor"],
                                   ["profiles", "show"], ["models", "pull"]], ids=" ".join)  # fmt: skip
def test_every_command_s_help_ends_with_an_example(words: Sequence[str]) -> None:
    done = subprocess.run([*CLI, *words, "--help"], capture_output=True, text=True, check=True)
    assert f"Example: deltamem {words[0]}" in done.stdout


def test_completion_offers_profiles(run: Runner) -> None:
    folder = run.home / "profiles"
    folder.mkdir(parents=True)
    for name in ("work", "wife", "home"):
        (folder / f"{name}.safetensors").touch()
    environment = run.environment | {
        "_DELTAMEM_COMPLETE": "complete_bash", "COMP_WORDS": "deltamem chat --profile w", "COMP_CWORD": "3",
    }  # fmt: skip
    code = "import sys; sys.argv = ['deltamem']; from deltamem_cli.app import app; app(prog_name='deltamem')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["wife", "work"], done.stderr
