"""Files and folders are there whole or not at all."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from src.files import digest, json_line, replace_folder, require_writable, write_bytes, write_json, write_text
from tests.disk import Disk


def raising(error: BaseException) -> Callable:
    def call(*_: object) -> None:
        raise error

    return call


def test_text_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "文.txt"
    for text in ("一\n", "二，longer\n", ""):
        write_text(str(path), text)
        assert path.read_bytes() == text.encode() and os.listdir(path.parent) == ["文.txt"]


def test_a_digest_follows_a_file_that_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(0, content[0]))
        assert digest(path) == hashlib.sha256(content).hexdigest()


def test_json_keeps_six_digits_of_large_and_small_numbers(tmp_path: Path) -> None:
    numbers = np.array([1234567.0, 1.2345678, 1.2345678e-9])
    write_json(tmp_path / "a.json", {"文": numbers, 3: (np.float32(0.1), np.int64(7), True, None, "\ud800")})
    data = (tmp_path / "a.json").read_bytes()
    assert json.loads(data) == {"文": [1234570.0, 1.23457, 1.23457e-9], "3": [0.1, 7, True, None, "\ud800"]}
    with pytest.raises(ValueError, match=r"b\.json: a\[1\] is nan, which JSON cannot hold"):
        write_json(tmp_path / "b.json", {"a": [0.0, float("nan")]})
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("value", "line"), [({"a": "猫\n"}, '{"a": "猫\\n"}'), (["\udcba", "猫"], '["\\udcba", "\\u732b"]')]
)
def test_a_line_of_json_is_one_line_of_utf_8(value: object, line: str) -> None:
    assert json_line(value) == line.encode() and json.loads(json_line(value)) == value


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    disk = Disk(monkeypatch)
    write_bytes(tmp_path / "a.bin", bytes(100_000))
    assert [(name, own) for name, own, _ in disk.renamed] == [("a.bin", set())]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, raising(error))
    with pytest.raises(type(error)) as caught:
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["kept.json"]
    if isinstance(error, OSError):
        assert caught.value.filename == str(path) and caught.value.errno == errno.ENOSPC


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / ".writing-a.txt").symlink_to("/dev/full")  # refuses every byte
    with pytest.raises(OSError, match="No space left on device: .*/a.txt"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_a_kill_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".writing-a.txt").write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_a_folder_above_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "a.txt", "y")


def folders(tmp_path: Path) -> tuple[Path, Path]:
    new, place = tmp_path / ".writing-out", tmp_path / "out"
    for folder in (new, place):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    return new, place


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    new, place = folders(tmp_path)
    replace_folder(new, place)
    assert (place / "name").read_text() == ".writing-out" and os.listdir(tmp_path) == ["out"]


def test_what_a_kill_left_of_an_earlier_replacement_goes(tmp_path: Path) -> None:
    new, place = folders(tmp_path)
    left = tmp_path / ".replaced-out" / "deeper"
    left.mkdir(parents=True)
    (left / "file").write_text("older")
    replace_folder(new, place)
    assert (place / "name").read_text() == ".writing-out" and os.listdir(tmp_path) == ["out"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, place = folders(tmp_path)
    real = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: raising(KeyboardInterrupt())() if a == new else real(a, b))
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, place)
    assert (place / "name").read_text() == "out" and sorted(os.listdir(tmp_path)) == [".writing-out", "out"]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    place = tmp_path / "new" / "folder"
    assert require_writable(place) == place and place.is_dir() and not list(place.iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "folder", Path("/proc/self")):  # the kernel's own is closed to root as well
        with pytest.raises(OSError) as told:
            require_writable(folder)
        assert told.value.filename == str(folder)
