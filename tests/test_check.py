"""What tools/check_data.py says of a folder: where a byte is wrong, and that the rest is good."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from operator import length_hint
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_info, png

from src.config import AudioEncoderConfig
from src.data import check
from src.data.errors import DataError
from src.data.record import Record
from src.data.store import Dataset
from src.data.writer import DatasetWriter

AUDIO = AudioEncoderConfig(max_frames=16, mels=8)
RECORDS, SHARD = 12, 4


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    captions = (f"第{number}只",) * (number % 3)
    clips = (rng.integers(0, 256, (5, 8), np.uint8),) * max(1, len(captions)) if number % 2 else ()
    image = png(rng.integers(0, 256, (9, 7, 3), np.uint8)) if number % 4 else None
    return Record(f"r{number}", image, captions if image else captions or ("字",), clips)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "whole"
    with DatasetWriter(folder, AUDIO, {}, shard_records=SHARD) as writer:
        for number in range(RECORDS):
            writer.add("train", record(number))
        writer.add("dev", record(1))
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    """One record more than there are: the index says which, in its first column."""
    rows = np.load(path)
    np.save(path, np.concatenate([rows, np.full_like(rows[:1], RECORDS)]))


def test_a_good_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.report(whole, 2)
    assert capsys.readouterr().out == f"{whole}: all 13 records are good\n"


@pytest.mark.parametrize("part", ["image", "audio", "captions", "key"])
def test_a_byte_of_a_record(part: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = 5
    path = copy / "train-00001.mindrecord"
    stored = record(number)
    captions = json.dumps(stored.captions[0]).strip('"').encode()
    content = {"image": stored.image, "audio": stored.audio[0].tobytes(), "key": b"r5", "captions": captions}[part]
    spoil(path, path.read_bytes().index(content) + len(content) // 2)
    with pytest.raises(
        DataError, match=r"2 problems, 12 records are good; .*train-00001.mindrecord: the file is damaged"
    ):
        check.report(copy, 2)
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 and f"split 'train', record {number} " in listed[1], listed
    dataset = Dataset(copy, "train")
    others = [other for other in range(RECORDS) if other != number]
    for other, found in zip(others, dataset.read(others), strict=True):
        assert (found.key, found.image, found.captions) == (f"r{other}", record(other).image, record(other).captions)


@pytest.mark.parametrize(
    ("name", "damage", "good", "problems"),
    [
        ("train-00001.mindrecord", lambda path: spoil(path, 20), 13, ["the file is damaged"]),  # its header
        ("train-00001.mindrecord", Path.unlink, 9, ["the file is missing", *["cannot be read"] * 4]),
        ("train-00002.mindrecord.db", Path.unlink, 9, ["the file is missing", *["cannot be read"] * 4]),
        ("index-train.npy", Path.unlink, 1, ["the file is missing", "no record is checked"]),
        ("checksums-dev.npy", lambda path: path.write_bytes(b""), 12, ["the file has 0 bytes", "no record is checked"]),
        (
            "checksums-train.npy",
            lambda path: np.save(path, np.load(path)[:-1]),
            1,
            ["the file has", "they are of 11 and 12 records, not 12): no record is checked"],
        ),
        (
            "index-train.npy",
            lengthen,
            1,
            ["the file has", "they are of 12 and 13 records, not 12): no record is checked"],
        ),
        (
            "index-train.npy",
            lambda path: (lengthen(path), lengthen(path.with_name("checksums-train.npy"))),
            1,
            ["the file has", "the file has", "they are of 13 and 13 records, not 12): no record is checked"],
        ),
        (
            "index-dev.npy",
            lambda path: np.save(path, np.zeros((2, 3), np.int32)),
            12,
            ["the file has", "the index 2 samp"],
        ),
    ],
)
def test_damaged_files(name: str, damage: Callable[[Path], object], good: int, problems: list[str], copy: Path) -> None:
    damage(copy / name)
    found, count = check.check(copy)
    assert count == good, found.first
    assert len(found.first) == len(problems) == found.count, found.first
    for problem, part in zip(found.first, problems, strict=True):
        assert part in problem and name.split(".")[0].split("-")[1 if name.endswith("npy") else 0] in problem


def test_a_shard_cut_short(copy: Path) -> None:
    path = copy / "train-00000.mindrecord"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, good = check.check(copy)
    assert 9 <= good < 13 and found.count == 14 - good, found.first
    assert "the file has" in found.first[0] and all(problem.startswith(str(path)) for problem in found.first)


def test_an_image_that_was_never_one(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, AUDIO, {}) as writer:
        writer.add("train", Record("odd", b"no image", (), ()))
    found, good = check.check(tmp_path)
    assert good == 0 and found.first == [
        f"{tmp_path}/train-00000.mindrecord: split 'train', record 0 ('odd') cannot be decoded "
        "(its image: not a readable image (no known image format))"
    ]


def test_what_is_no_dataset(copy: Path) -> None:
    edit_info(copy, {"version": 0})
    with pytest.raises(DataError, match="format version 0"):
        check.report(copy, 2)
    with pytest.raises(DataError, match="--workers 0: give at least 1"):
        check.report(copy, 0)


def test_only_the_first_problems_are_listed() -> None:
    found = check.Findings()
    for number in range(check.SHOWN + 5):
        found.add(str(number))
    assert found.count == check.SHOWN + 5 and len(found.first) == check.SHOWN


@pytest.mark.parametrize("count", [0, 1, check.CHUNK, check.CHUNK + 1, 2 * check.CHUNK, 2 * check.CHUNK + 3])
def test_chunks_change_neither_order_nor_number(count: int) -> None:
    rows = iter(range(count))
    with ThreadPoolExecutor(2) as pool:
        found = check._in_chunks(pool, str, rows)
        first = list(islice(found, 1))
        assert count - length_hint(rows) == min(count, check.CHUNK), "no more are in memory"
        assert [*first, *found] == [str(number) for number in range(count)]
