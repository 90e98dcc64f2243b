"""The manifest of a checkpoint folder: sizes and sha256 of its files, so that damage is found before it is used.

It lists what a run wrote. What comes later (evaluation.json, reranking.yaml, outliers.safetensors) is not in it.
Folders without a manifest, as earlier versions wrote them, are used as they are.
"""

import functools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.checkpoints.files import EMA, MANIFEST, MODEL, OPTIMIZER, STATE, CheckpointError, unreadable
from src.files import ROOT, digest, is_lfs_pointer, write_json

FORMAT = 1


def write_manifest(folder: Path, digests: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Describes every file of a folder that is about to become a checkpoint.

    Args:
        digests: sha256 by name, of files whose content was hashed while it was written.
        about: what else is said, such as the step.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in paths}
    files = {
        name: {"size": path.stat().st_size, "sha256": digests.get(name) or digest(path)} for name, path in names.items()
    }
    write_json(folder / MANIFEST, {"format": FORMAT, **about, "git": git_revision(), "files": files})


def check(folder: Path, ema: bool = False, whole: bool = False) -> None:
    """Compares the files of a checkpoint with its manifest.

    Args:
        ema: its averaged weights are read instead of its last ones.
        whole: all of it is read, as a run needs it that goes on; otherwise what a network needs.

    Raises:
        CheckpointError: a file is missing or another than was written, or a later version wrote the manifest.
    """
    if not (folder / MANIFEST).is_file():
        return
    unread = set() if whole else {OPTIMIZER, STATE, MODEL if ema else EMA}
    for name, known in read_manifest(folder)["files"].items():
        if name not in unread:
            _check_file(folder / name, known["size"], known["sha256"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of a folder's manifest.

    Raises:
        CheckpointError: it cannot be read, or a later version wrote it.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, files = int(found["format"]), found["files"]
        for known in files.values():
            int(known["size"]), str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}): name another checkpoint, or delete it to use the files "
            "unchecked"
        ) from None
    if version > FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads {FORMAT}: update OPT")
    return found


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        found, problem = path.stat().st_size, ""
        if is_lfs_pointer(path):
            problem = unreadable(path, OSError())
        elif found != size:
            problem = f"it has {found} bytes, {size} were written"
        elif digest(path) != sha256:
            problem = "its sha256 is not that of what was written"
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: name another checkpoint") from None
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise CheckpointError(
            f"{path} is damaged: {problem}; name another checkpoint, or delete {MANIFEST} beside it if you changed "
            "the file"
        )


@functools.cache
def git_revision() -> str | None:
    """What ``git describe`` says of the code, ending in ``-dirty`` with changes; None outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
