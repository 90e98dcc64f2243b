"""Rows of MindRecord files: those that MindSpore reads; a wrong byte is an exception or a wrong checksum."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from mindspore.dataset import MindDataset

from src.config import AudioEncoderConfig
from src.data import mindrecord
from src.data.mindrecord import READ_ERRORS, Shards
from src.data.record import BYTES, COLUMNS, Record, checksum
from src.data.writer import DatasetWriter

AUDIO = AudioEncoderConfig(max_frames=16, mels=8)
RECORDS, SHARD = 41, 16


def record(number: int) -> Record:
    """Texts of every length class of msgpack, and images that fill several pages."""
    rng = np.random.default_rng(number)
    captions = ("一只“猫”\n\0" * (1, 3, 40, 9000)[number % 4],) * (number % 3)
    clips = (rng.integers(0, 256, (5, 8), np.uint8),) * max(1, len(captions)) if number % 2 else ()
    image = rng.bytes(1_500_000) if number % 4 == 3 else png(rng.integers(0, 256, (9, 7, 3), np.uint8))
    return Record(f"鱼{number}" * (1 + 20 * (number % 2)), image if number % 5 else None, captions or ("字",), clips)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards") / "data 100%?#字"
    with DatasetWriter(place, AUDIO, {}, shard_records=SHARD) as writer:
        for number in range(RECORDS):
            writer.add("train", record(number))
    return place


def open_shards(folder: Path) -> Shards:
    paths = [folder / f"train-{number:05d}.mindrecord" for number in range(3)]
    return Shards(paths, [SHARD, SHARD, RECORDS - 2 * SHARD])


def test_rows_are_those_that_mindspore_reads(folder: Path) -> None:
    ours = open_shards(folder)
    theirs = MindDataset([str(path) for path in ours.paths], list(COLUMNS), num_parallel_workers=1, shuffle=False)
    assert any(path.stat().st_size > (1 << 20) + 2 * (1 << 22) for path in ours.paths), "several pages"
    for number in np.random.default_rng(0).permutation(RECORDS).tolist():
        row = ours.row(number)
        for name, value in zip(COLUMNS, theirs[number], strict=True):
            expected = value.tobytes() if name in BYTES else value.item()
            assert (row[name] or b"\0") == expected, (number, name)


def test_checksums_are_those_of_what_was_written(folder: Path) -> None:
    stored = np.load(folder / "checksums-train.npy")
    assert [checksum(open_shards(folder).row(number)) for number in range(RECORDS)] == stored.tolist()


def test_a_few_files_are_open_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindrecord, "MOST_OPEN", 2)
    ours, order = open_shards(folder), [0, 20, 40, 1, 39, 19, 38, 2]
    assert [ours.row(number)["key"] for number in order] == [record(number).key for number in order]
    assert len(ours._files) == 2


def test_whatever_byte_is_wrong_the_process_lives_and_no_row_is_another(folder: Path, tmp_path: Path) -> None:
    """Headers, pages of blobs and of texts, indices: MindSpore's reader ends the process at some of these."""
    rng = random.Random(0)
    stored = np.load(folder / "checksums-train.npy")
    paths = sorted(folder.glob("*.mindrecord*"))
    whole = {path: path.read_bytes() for path in paths}
    bad = {".mindrecord": 0, ".db": 0}
    for _ in range(60):
        path = rng.choice(paths)
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        used = np.flatnonzero(np.frombuffer(whole[path], np.uint8))
        some = used[:800] if rng.random() < 0.3 else used  # the header
        place = int(some[rng.randrange(len(some))])
        data = bytearray(whole[path])
        data[place] ^= 1 << rng.randrange(8)
        (copy / path.name).write_bytes(data)
        ours = open_shards(copy)
        for number in range(RECORDS):
            try:
                bad[path.suffix] += checksum(ours.row(number)) != stored[number]
            except READ_ERRORS:
                bad[path.suffix] += 1
        shutil.rmtree(copy)
    assert min(bad.values()) > 0, bad


def test_a_damaged_page_of_an_index_costs_the_rows_of_it(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "train-00000.mindrecord.db"
    data = bytearray(path.read_bytes())
    assert data[-4096] == 0x0D, "a leaf of a table: the last rows"
    data[-4096] = 0
    path.write_bytes(data)
    ours, good = open_shards(copy), 0
    for number in range(SHARD):
        try:
            good += ours.row(number)["key"] == record(number).key
        except READ_ERRORS:
            continue
    assert SHARD / 2 < good < SHARD
    assert ours.row(SHARD)["key"] == record(SHARD).key


@pytest.mark.parametrize("name", ["train-00000.mindrecord", "train-00000.mindrecord.db"])
@pytest.mark.parametrize("content", [None, b"", b"\x81" * 100])
def test_a_file_that_is_gone_or_another(folder: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(READ_ERRORS):
        open_shards(copy).row(3)
    assert open_shards(copy).row(SHARD)["key"] == record(SHARD).key


def test_columns_that_are_not_as_they_were_written() -> None:
    """Lengths of another row, and what is no map: read here, and not by MindSpore, which would end the process."""
    parts = [bytes([number]) * number for number in range(1, len(BYTES) + 1)]
    data = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert mindrecord._unpack_blobs(data) == dict(zip(BYTES, parts, strict=True))
    for wrong in (data + b"\0", data[:-1], data[:7] + b"\2" + data[8:], b""):
        with pytest.raises(ValueError, match="its bytes are not as they were written"):
            mindrecord._unpack_blobs(wrong)
    for wrong in (b"", b"\x92\xa1a\xa1b", b"\xa1a"):
        with pytest.raises(ValueError, match="its texts are not as they were written"):
            mindrecord._unpack_texts(wrong)
