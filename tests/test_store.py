"""Datasets: what is written is read back in any order, and whatever is wrong with a folder is named."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_info, tiny_record

from src.config import AudioEncoderConfig, Config
from src.data.errors import DataError
from src.data.record import PAGE_BYTES, Record
from src.data.regions import Regions
from src.data.schema import AUDIO, IMAGE, TEXT
from src.data.store import Dataset, read_info
from src.data.writer import WRITE_ROWS, DatasetWriter
from tests.disk import Disk

AUDIO_CONFIG = AudioEncoderConfig(max_frames=16, mels=8)


def same(left: Record, right: Record) -> bool:
    clips = left.audio or (None,) * len(left.captions)
    return (left.key, left.image, left.captions) == (right.key, right.image, right.captions) and all(
        (a is None and b is None) or np.array_equal(a, b) for a, b in zip(clips, right.audio, strict=True)
    )


@pytest.fixture
def copy(tiny: Config, tmp_path: Path) -> Path:
    """A copy of the tiny dataset that a test may spoil."""
    return Path(shutil.copytree(tiny.data.path, tmp_path / "data"))


def test_round_trip_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    records = [tiny_record(rng, index, AUDIO_CONFIG, 8) for index in range(50)]
    records.append(Record("empty audio clips", b"\0picture\0\0", ("a", "“引号”\n"), ()))
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {"from": "试验"}, shard_records=20) as writer:
        for record in records:
            writer.add("train", record)
    dataset = Dataset(tmp_path, "train", AUDIO_CONFIG)
    order = rng.permutation(len(records)).tolist() + [3, 3]
    assert all(same(records[i], record) for i, record in zip(order, dataset.read(order), strict=True))
    names = sorted(path.name for path in tmp_path.glob("*.mindrecord"))
    assert names == [f"train-0000{index}.mindrecord" for index in range(3)]
    assert dataset.info["about"] == {"from": "试验"}
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("shard", [WRITE_ROWS - 1, WRITE_ROWS, WRITE_ROWS + 1, 10 * WRITE_ROWS])
def test_rows_handed_over_in_parts_keep_their_order(tmp_path: Path, shard: int) -> None:
    keys = [f"r{number}" for number in range(2 * WRITE_ROWS + 3)]
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}, shard_records=shard) as writer:
        for key in keys:
            writer.add("train", Record(key, None, (f"{key}.",), ()))
    dataset = Dataset(tmp_path, "train", AUDIO_CONFIG)
    assert [(record.key, *record.captions) for record in dataset.read(range(len(keys)))] == [(k, f"{k}.") for k in keys]
    assert len(list(tmp_path.glob("*.mindrecord"))) == -(-len(keys) // shard)


def test_all_is_on_the_disk_before_something_says_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part says that its shard is whole, dataset.json that everything is."""
    rng, disk = np.random.default_rng(1), Disk(monkeypatch)
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}, shard_records=4) as writer:
        for index in range(6):
            writer.add("train", tiny_record(rng, index, AUDIO_CONFIG, 8))
    names = [name for name, *_ in disk.renamed if not name.startswith(".progress")]
    assert names == [".part-train-00000.npz", ".part-train-00001.npz", "dataset.json"]
    assert not any(own | beside for _, own, beside in disk.renamed), disk.renamed


def test_index_and_counts(tmp_path: Path) -> None:
    clip = np.ones((3, 8), np.uint8)
    records = [
        Record("two", b"p", ("a", "b"), (clip, None)),
        Record("silent", b"q", (), ()),
        Record("audio", None, (), (clip,)),
        Record("same image", b"p", ("c",), ()),
    ]
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}) as writer:
        for record in records:
            writer.add("dev", record)
    dataset = Dataset(tmp_path, "dev")
    assert dataset.samples.tolist() == [[0, 0, 0], [0, 1, 0], [1, -1, 1], [2, -1, 2], [3, 0, 0]]
    assert [dataset.count(modality) for modality in (TEXT, IMAGE, AUDIO)] == [3, 4, 2]
    assert len(dataset) == 5 and dataset.info["splits"]["dev"]["pictures"] == 2
    assert [records[0].presence(0), records[0].presence(1)] == [[1, 1, 1], [1, 1, 0]]
    assert records[2].presence(-1) == [0, 0, 1]
    with pytest.raises(DataError, match="no record 4"):
        next(dataset.read([4]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("r", None, (), (None,)), "neither image nor caption nor audio"),
        (Record("r", b"p", ("a", "b"), (None,)), "2 captions but 1 audio clips"),
        (Record("r", None, ("a",), (np.ones((3, 9), np.uint8),)), r"uint8\[3, 9\], not uint8 \[frames, 8\]"),
        (Record("r", None, ("a",), (np.ones((3, 8)),)), "an audio clip is float64"),
        (Record("r", bytes(PAGE_BYTES), (), ()), "larger than 4 MB"),
    ],
)
def test_bad_records(tmp_path: Path, record: Record, message: str) -> None:
    writer = DatasetWriter(tmp_path, AUDIO_CONFIG, {})
    with pytest.raises(DataError, match=f"'r'.*{message}"):
        writer.add("train", record)
    with pytest.raises(DataError, match="cannot name files"):
        writer.add("../x", Record("r", b"p", (), ()))


def test_unfinished_dataset_is_refused_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path, AUDIO_CONFIG, {}, shard_records=1) as writer:
        writer.add("train", Record("a", b"p", (), ()))
        raise RuntimeError("killed")
    with pytest.raises(DataError, match="no finished dataset"):
        Dataset(tmp_path, "train")
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}) as writer:
        writer.add("dev", Record("b", b"p", (), ()))
    assert [record.key for record in Dataset(tmp_path, "dev").read([0])] == ["b"]
    assert not (tmp_path / "train-00000.mindrecord").exists() and (tmp_path / "notes.txt").exists()
    with pytest.raises(DataError, match="already holds a dataset"):
        DatasetWriter(tmp_path, AUDIO_CONFIG, {})
    with pytest.raises(DataError, match="no record was written"), DatasetWriter(tmp_path / "x", AUDIO_CONFIG, {}):
        pass


def test_a_kill_while_an_unfinished_dataset_is_cleared_leaves_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError), DatasetWriter(tmp_path, AUDIO_CONFIG, {}, shard_records=1) as writer:
        for key in "abc":
            writer.add("train", Record(key, b"p", (), ()))
        raise RuntimeError("killed")
    removed: list[Path] = []

    def unlink(path: Path, *_: object) -> None:
        removed.append(path)
        os.remove(path)
        if len(removed) == 7:  # of three shards with an index and a part each
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        DatasetWriter(tmp_path, AUDIO_CONFIG, {})
    assert (tmp_path / ".progress.json").exists() and len(removed) == 7
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}) as writer:
        writer.add("dev", Record("b", b"p", (), ()))
    assert [record.key for record in Dataset(tmp_path, "dev").read([0])] == ["b"]


@pytest.mark.parametrize(
    "name",
    ["index-gallery.npy", "codes.json", "photos-00000.mindrecord", "photos-00000.mindrecord.db", "rejected.jsonl"],
)
def test_files_of_other_origin_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(DataError, match=f"{name} is in the way, and of no unfinished dataset: choose another --"):
            DatasetWriter(tmp_path, AUDIO_CONFIG, {}, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_shard_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise RuntimeError("Exception thrown.\n---\n[ERROR] No free disk to be used\n\n--- C++ Call Stack")

    monkeypatch.setattr("mindspore.mindrecord.FileWriter.write_raw_data", full_disk)
    message = r"/train-00000.mindrecord cannot be written \(No free disk to be used\): make room"
    with pytest.raises(DataError, match=message), DatasetWriter(tmp_path, AUDIO_CONFIG, {}) as writer:
        writer.add("train", Record("a", b"p", (), ()))
    assert not (tmp_path / "dataset.json").exists()


def test_folder_errors(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        Dataset(tmp_path / "absent", "train")
    with pytest.raises(DataError, match="data.path is empty"):
        Dataset("", "train")
    with pytest.raises(DataError, match="no split 'test': it has train, dev"):
        Dataset(copy, "test")
    edit_info(copy, {"version": 99})
    with pytest.raises(DataError, match="format version 99, this code reads 2"):
        Dataset(copy, "train")
    edit_info(copy, {"version": 2, "splits": None})
    with pytest.raises(DataError, match="does not describe a dataset of this project"):
        read_info(copy)
    edit_info(copy, {"format": "other"})
    with pytest.raises(DataError, match="does not describe a dataset of this project"):
        read_info(copy)
    (copy / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_info(copy)


@pytest.mark.parametrize("name", ["train-00001.mindrecord", "train-00001.mindrecord.db", "index-train.npy"])
def test_missing_or_short_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name} has .* bytes, dataset.json says"):
        Dataset(copy, "train")
    Dataset(copy, "dev")
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        Dataset(copy, "train")


def test_any_changed_byte_of_dataset_json_is_named_or_harmless(copy: Path) -> None:
    path, rng = copy / "dataset.json", np.random.default_rng(0)
    whole, named = path.read_bytes(), 0
    expected = [record.key for record in Dataset(copy, "train").read(range(24))]
    for place in rng.choice(len(whole), 150, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            assert [record.key for record in Dataset(copy, "train").read(range(24))] == expected
        except DataError as error:
            named += 1
            assert str(copy) in str(error) and "\n" not in str(error)
    assert named > 50


@pytest.mark.parametrize("key", ["samples", "index", "checksums"])
def test_an_index_or_checksums_of_another_number_are_named(copy: Path, key: str) -> None:
    """Whole files, but of another split."""
    splits = read_info(copy)["splits"]
    splits["train"][key] = splits["dev"][key]
    edit_info(copy, {"splits": splits})
    with pytest.raises(DataError, match="^" + re.escape(f"{copy}/dataset.json is damaged: ")):
        Dataset(copy, "train")
    Dataset(copy, "dev")


@pytest.mark.parametrize("about", [None, "flickr8k", ["flickr8k"]])
def test_a_description_of_the_corpus_that_is_none_is_named(copy: Path, about: object) -> None:
    edit_info(copy, {"about": about})
    with pytest.raises(DataError, match="dataset.json is damaged"):
        Dataset(copy, "train")


@pytest.mark.parametrize("name", ["index-train.npy", "checksums-train.npy"])
def test_a_changed_byte_of_an_index_is_named(copy: Path, name: str) -> None:
    """A wrong number there would be another caption, or the damage of a good record."""
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is damaged: copy it from where the dataset was made"):
        Dataset(copy, "train")


def test_damaged_shard_is_named(copy: Path) -> None:
    path = copy / "train-00001.mindrecord"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="train-00001.mindrecord: split 'train', record 10 cannot be read") as caught:
        list(Dataset(copy, "train").read(range(24)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("mels", 80), ("hop_ms", 10), ("sample_rate", 8000), ("max_frames", 400)])
def test_other_audio_settings(tiny: Config, key: str, value: int) -> None:
    with pytest.raises(DataError, match=rf"{key}=\d+, model.audio has {key}={value}: set"):
        Dataset(tiny.data.path, "train", replace(tiny.model.audio, **{key: value}))


def test_shorter_audio_is_fine(tiny: Config) -> None:
    shorter = Dataset(tiny.data.path, "train", replace(tiny.model.audio, max_frames=64, layers=1))
    assert len(shorter) == len(Dataset(tiny.data.path, "train"))


def found(count: int, seed: int) -> Regions:
    rng = np.random.default_rng(seed)
    features, boxes = rng.standard_normal((count, 6)).astype(np.float16), rng.uniform(0, 9, (count, 4))
    classes, scores = rng.integers(-1, 9, count).astype(np.int32), rng.random(count, np.float32)
    return Regions(features, boxes.astype(np.float32), classes, scores, 10 * seed, 7)


SOUNDS = {
    "feature": (AudioEncoderConfig(input="feature", feature_dim=5, max_frames=16), np.float16, (3, 5)),
    "wav2vec2": (AudioEncoderConfig(input="wav2vec2", max_frames=16), np.int16, (700,)),
}


@pytest.mark.parametrize("kind", SOUNDS)
def test_regions_and_other_kinds_of_audio_are_read_back(tmp_path: Path, kind: str) -> None:
    audio, dtype, shape = SOUNDS[kind]
    clips = [(np.random.default_rng(seed).standard_normal(shape) * 100).astype(dtype) for seed in range(3)]
    records = [
        Record("both", b"p", ("a", "b"), (clips[0], None), found(4, 1)),
        Record("regions", None, ("c",), (clips[1],), found(1, 2)),
        Record("same regions", None, ("d",), (), found(1, 2)),
        Record("audio", None, (), (clips[2],)),
    ]
    with DatasetWriter(tmp_path, audio, {}) as writer:
        for record in records:
            writer.add("train", record)
    dataset = Dataset(tmp_path, "train", audio)
    for record, read in zip(records, dataset.read(range(4)), strict=True):
        assert same(record, read) and (record.regions is None) == (read.regions is None)
        for name in ("features", "boxes", "classes", "scores", "width", "height") if record.regions else ():
            ours, stored = getattr(record.regions, name), getattr(read.regions, name)
            assert np.array_equal(ours, stored) and np.asarray(ours).dtype == np.asarray(stored).dtype
    assert dataset.info["splits"]["train"]["regions"] == 4 and dataset.count(IMAGE) == 2
    assert dataset.samples[:, 2].tolist() == [0, 0, 1, 1, 3], "equal regions are the same image"
    assert records[1].presence(0) == [1, 0, 1] and records[1].presence(0, "region") == [1, 1, 1]
    with pytest.raises(DataError, match=f"audio prepared with input={kind}.*, model.audio has input=fbank"):
        Dataset(tmp_path, "train", AUDIO_CONFIG)
    with pytest.raises(DataError, match="max_frames=16, model.audio has max_frames=20"):
        Dataset(tmp_path, "train", replace(audio, max_frames=20))


def test_an_audio_clip_of_another_kind_is_not_stored(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path, SOUNDS["feature"][0], {})
    with pytest.raises(DataError, match=r"an audio clip is uint8\[3, 8\], not float16 \[frames, 5\]"):
        writer.add("train", Record("r", None, (), (np.ones((3, 8), np.uint8),)))
    writer = DatasetWriter(tmp_path / "x", SOUNDS["wav2vec2"][0], {})
    with pytest.raises(DataError, match=r"an audio clip is uint8\[3, 8\], not int16 \[frames\]"):
        writer.add("train", Record("r", None, (), (np.ones((3, 8), np.uint8),)))


def test_datasets_of_the_first_version_are_refused(copy: Path) -> None:
    edit_info(copy, {"version": 1})
    with pytest.raises(
        DataError, match="dataset.json has format version 1, this code reads 2: prepare the dataset again"
    ):
        Dataset(copy, "train")


def test_images_in_another_form_than_the_model_reads(tiny: Config, tmp_path: Path) -> None:
    image = replace(tiny.model.image, input="region")
    with pytest.raises(DataError, match="has image but no regions, which model.image.input=region reads: change the"):
        Dataset(tiny.data.path, "train", tiny.model.audio, image)
    with DatasetWriter(tmp_path, AUDIO_CONFIG, {}) as writer:
        writer.add("train", Record("r", None, ("a",), (), found(2, 1)))
    with pytest.raises(DataError, match="has regions but no image, which model.image.input=patch reads"):
        Dataset(tmp_path, "train", AUDIO_CONFIG, tiny.model.image)
    assert len(Dataset(tmp_path, "train", AUDIO_CONFIG, image)) == 1


def test_a_corpus_without_images_fits_every_model(tiny: Config, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, tiny.model.audio, {}) as writer:
        writer.add("train", Record("a", None, ("text",), ()))
    for kind in ("patch", "region"):
        assert len(Dataset(tmp_path, "train", tiny.model.audio, replace(tiny.model.image, input=kind))) == 1
