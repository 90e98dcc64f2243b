"""Files and folders that are there whole or not at all: a kill or a full disk leaves the old one."""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ROOT = Path(__file__).resolve().parents[1]  # of the repository


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8; otherwise as :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes beside the file and renames it; folders above it are made.

    Raises:
        OSError: it cannot be written; it names the file, which is as it was, and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".writing-{path.name}")  # one name: what a kill leaves is overwritten by the next write
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def require_writable(folder: Path) -> Path:
    """Makes the folder and those above it, and tells before long work that nothing could be written there.

    Raises:
        OSError: it cannot be made, or nothing written in it; it names the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from None


def sync_folder(folder: Path) -> None:
    """Flushes which names a folder holds: without it a renamed file may be gone after a power cut."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(place)


def digest(path: Path) -> str:
    """The sha256 of a file; of one that is as it was when this process last asked, it is remembered."""
    now = path.stat()
    return _digest(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def content_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of named arrays' values, which a file of them says of itself."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + b"\0")
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file that exists."""
    return one.exists() and other.exists() and one.samefile(other)


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is only Git LFS' pointer to the content, as a clone without ``git lfs`` has it."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def replace_folder(new: Path, place: Path) -> None:
    """Renames the folder ``new`` to ``place``; what stood there comes back if that fails, and goes if it does not."""
    old = place.with_name(f".replaced-{place.name}")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
        sync_folder(place.parent)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes readable JSON, whole or not at all.

    A text that UTF-8 cannot hold, as names of files may be, is escaped. Floats keep six significant digits; numpy
    scalars and arrays become numbers and lists.
    """
    plain = _plain(value, Path(path).name)
    try:
        data = json.dumps(plain, ensure_ascii=False, indent=2).encode()
    except UnicodeEncodeError:  # half a pair of surrogates
        data = json.dumps(plain, indent=2).encode()
    write_bytes(path, data + b"\n")


def json_line(value: Any) -> bytes:
    """JSON on one line, without its end."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which only an escape can say
        return json.dumps(value).encode()


def _plain(value: Any, where: str) -> Any:
    """The value in types of JSON; ``where`` names it if it has none."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{at}]") for at, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
        return float(f"{value:.6g}")
    return value
