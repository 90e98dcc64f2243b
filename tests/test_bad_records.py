"""Records that cannot be read any more: told once, replaced alike in every run, counted, and no crash."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, kill_after, png, tiny_dataset, tiny_record
from test_pipeline import equal

from src.checkpoints import checkpoint
from src.checkpoints.files import CheckpointError
from src.config import Config, ObjectivesConfig, OptimizerConfig, SourceConfig, TrainConfig, WeightsConfig
from src.data import check
from src.data.bad_records import LenientReader
from src.data.errors import BadRecordError, DataError
from src.data.images import ImageLoader
from src.data.pipeline import Batch, Loader
from src.data.record import Record
from src.data.store import Dataset
from src.data.writer import DatasetWriter
from src.training.log import RunLog
from src.training.pace import TIMINGS
from src.training.step import StepResult, TrainStep
from src.training.trainer import Trainer

RECORDS, BAD = 24, (3, 7, 8, 20)  # 3 and 7 have two captions each, 7 and 8 stand side by side


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three shards of training data."""
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0, mlm=0.5))
    config = Config(model=MODEL_CONFIG, objectives=objectives, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1))
    return tiny_dataset(tmp_path_factory.mktemp("whole"), RECORDS, config)


def spoil(folder: Path, number: int, part: str = "image") -> str:
    """Flips a bit of a record on the disk, as happens to disks; returns its key."""
    (record,) = Dataset(folder, "train").read([number])
    clip = next((clip for clip in record.audio if clip is not None), None)
    content = {"image": record.image, "captions": json.dumps(record.captions).encode()}.get(part) or clip.tobytes()
    path = folder / f"train-{number // 10:05d}.mindrecord"
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 4
    path.write_bytes(data)
    return record.key


@pytest.fixture(scope="module")
def damaged(whole: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = Path(shutil.copytree(whole.data.path, tmp_path_factory.mktemp("damaged") / "data"))
    for number, part in zip(BAD, ("image", "captions", "image", "audio"), strict=True):
        spoil(folder, number, part)
    return with_data(whole, path=str(folder))


def with_data(config: Config, **changes: Any) -> Config:
    return replace(config, data=replace(config.data, **changes))


def take(config: Config, count: int, position: int = 0, **ranks: int) -> tuple[list[Batch], list[str]]:
    batches, told = Loader(config, "train", **ranks).batches(position), []
    found = []
    for batch in islice(batches, count):
        found.append(batch)
        told += batches.told
    assert batches.bad_records == len(told)
    return found, told


def test_each_is_told_once_and_its_samples_are_replaced_by_the_next(whole: Config, damaged: Config) -> None:
    loader = Loader(damaged, "train")
    records = loader.sources.samples[:, 0]
    count = 3 * loader.order.size // 8
    (found, told), (expected, nothing) = take(damaged, count), take(whole, count)
    assert not nothing and len(told) == len(BAD)
    for line in told:
        assert line.startswith(f"{damaged.data.path}/train-0000"), "folder and shard"
        assert " is damaged (its checksum is another one): copy it" in line and "another sample takes its place" in line
    assert sorted(number for line in told for number in BAD if f"record {number} ('tiny-{number}')" in line) == [*BAD]
    assert [f"({n} of at most data.max_bad=100)" in line for n, line in enumerate(told, 1)] == [True] * 4
    following = {number: int(np.flatnonzero(records > number)[0]) for number in BAD}
    following[7] = int(np.flatnonzero(records > 8)[0])
    replaced = 0
    for batch, other in zip(found, expected, strict=True):
        for row, number in enumerate(other["sample_id"].tolist()):
            stand_in = following.get(records[number], number)
            replaced += stand_in != number
            assert batch["sample_id"][row] == stand_in
            if stand_in == number:
                assert all(np.array_equal(batch[name][row], other[name][row]) for name in batch)
    assert replaced == 3 * sum(np.count_nonzero(records == number) for number in BAD)


def test_a_replaced_row_is_that_of_its_own_sample(damaged: Config) -> None:
    """Image, text, masks and noise: as where the stand-in is taken in its own right, in the same pass."""
    found, _ = take(with_data(damaged, batch_size=6), 5)  # a pass
    rows: dict[int, list[Batch]] = {}
    for batch in found:
        for row, number in enumerate(batch["sample_id"].tolist()):
            rows.setdefault(number, []).append({name: value[row] for name, value in batch.items()})
    twice = [pair for pair in rows.values() if len(pair) > 1]
    assert len(twice) >= 3
    assert all(equal(pair[0], other) for pair in twice for other in pair[1:])


def test_workers_prefetch_and_resumption_change_nothing(damaged: Config) -> None:
    expected, told = take(damaged, 12)
    for changes in ({"workers": 3}, {"prefetch": 1}):
        found, again = take(with_data(damaged, **changes), 12)
        assert all(equal(one, other) for one, other in zip(found, expected, strict=True)) and sorted(again) != []
        assert {line.split(" is damaged")[0] for line in again} == {line.split(" is damaged")[0] for line in told}
    for first in (1, 4, 7):
        found, _ = take(damaged, 12 - first, 8 * first)
        assert all(equal(one, other) for one, other in zip(found, expected[first:], strict=True))


def test_each_rank_counts_its_own(damaged: Config) -> None:
    half = with_data(damaged, batch_size=4)
    whole, _ = take(damaged, 3)
    told = []
    for rank in range(2):
        found, own = take(half, 3, rank=rank, ranks=2)
        told += own
        for batch, both in zip(found, whole, strict=True):
            assert np.array_equal(batch["sample_id"], both["sample_id"][4 * rank : 4 * rank + 4])
    assert {line.split(" is damaged")[0] for line in told} == {
        line.split(" is damaged")[0] for line in take(damaged, 3)[1]
    }


def broken_images(folder: Path, config: Config, broken: Callable[[int], bool], count: int = 24) -> None:
    """Images that were never any: their records are as they were written, and cannot be decoded."""
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, config.model.audio, {}, shard_records=10) as writer:
        for index in range(count):
            image = b"no image" if broken(index) else png(rng.integers(0, 256, (32, 32, 3), np.uint8))
            writer.add("train", Record(f"k{index}", image, ("红猫",), ()))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_that_cannot_be_decoded(whole: Config, tmp_path: Path, workers: int) -> None:
    broken_images(tmp_path, whole, lambda index: index in (2, 11, 12))
    config = with_data(whole, path=str(tmp_path), workers=workers)
    found, told = take(config, 3)
    ids = np.sort(np.concatenate([batch["sample_id"] for batch in found])).tolist()
    assert ids == sorted([*set(range(24)) - {2, 11, 12}, 3, 13, 13])
    assert len(told) == 3 and all("not a readable image" in line for line in told)
    assert any(line.startswith(f"{tmp_path}/train-00001.mindrecord: split 'train', record 12 ('k12')") for line in told)
    assert all(batch["image"].any((1, 2, 3)).all() for batch in found)


@pytest.mark.parametrize("place", [0, 1])
def test_a_source_is_replaced_from_itself(whole: Config, damaged: Config, tmp_path: Path, place: int) -> None:
    """Behind its last sample comes its first; the other source is whole."""
    last = Path(shutil.copytree(whole.data.path, tmp_path / "data"))
    spoil(last, 23, "audio")
    listed = [SourceConfig(whole.data.path + "/.", 1.0)]
    listed.insert(place, SourceConfig(str(last), 1.0))
    config = with_data(whole, path="", sources=tuple(listed))
    loader = Loader(config, "train")
    found, told = take(config, loader.order.size // 8)
    assert len(told) == 1 and told[0].startswith(str(last))
    ids = np.concatenate([batch["sample_id"] for batch in found])
    first, records = loader.sources.first_samples, loader.sources.first_records
    assert np.count_nonzero(ids == first[place]) > 1
    spoiled, sound = (np.flatnonzero(loader.sources.samples[:, 0] == records[n] + 23) for n in (place, 1 - place))
    assert not np.isin(spoiled, ids).any() and np.isin(sound, ids).any()
    others = first[1 - place] + np.arange(len(loader.sources.datasets[1 - place]))
    assert np.isin(others, ids).mean() > 0.8


@pytest.mark.parametrize(("most", "lived"), [(0, False), (3, False), (4, True)])
def test_more_than_max_bad_end_the_run(damaged: Config, most: int, lived: bool) -> None:
    config = with_data(damaged, max_bad=most)
    if lived:
        assert len(take(config, 8)[1]) == 4
        return
    with pytest.raises(
        DataError, match=rf"^{most + 1} records? of the training data cannot be read, more than data.ma"
    ) as caught:
        take(config, 8)
    message = str(caught.value)
    assert "\n" not in message and "the first: " in message and "is damaged (its checksum" in message
    assert message.endswith(f"python tools/check_data.py {damaged.data.path} names them all")


def test_no_record_is_left(whole: Config, tmp_path: Path) -> None:
    broken_images(tmp_path, whole, lambda index: True, 8)
    with pytest.raises(DataError, match="no record of the training data's source can be read; the first: "):
        take(with_data(whole, path=str(tmp_path)), 1)


def test_images_alone_are_replaced_too(whole: Config, tmp_path: Path) -> None:
    """A record that never had an image has no part in it."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    with DatasetWriter(folder, whole.model.audio, {}) as writer:
        for index in range(8):
            image = (
                None if index == 2 else b"no image" if index == 6 else png(np.full((16, 16, 3), index * 10, np.uint8))
            )
            writer.add("train", replace(tiny_record(rng, 4, whole.model.audio, 16), key=f"r{index}", image=image))
    path = folder / "train-00000.mindrecord"
    data = bytearray(path.read_bytes())
    (record,) = Dataset(folder, "train").read([3])
    data[data.index(record.image) + 20] ^= 1
    path.write_bytes(data)
    config = with_data(whole, path=str(folder), batch_size=7)
    config = replace(
        config, model=replace(config.model, image_tokenizer=replace(config.model.image_tokenizer, size=16))
    )
    batches = ImageLoader(config, "train").batches()
    batch = next(batches)
    assert sorted(batch["image"][:, 0, 0, 0].tolist()) == [0, 10, 40, 40, 50, 70, 70]
    assert (
        sorted(batches.told)[0].startswith(f"{path}: split 'train', record 3 ('r3') is damaged")
        and len(batches.told) == 2
    )
    batches.close()


def test_no_image_is_left(whole: Config, tmp_path: Path) -> None:
    """The only one is damaged: a record that never had one cannot take its place."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    with DatasetWriter(folder, whole.model.audio, {}) as writer:
        for index, image in enumerate((None, png(np.full((16, 16, 3), 7, np.uint8)), None)):
            writer.add("train", replace(tiny_record(rng, 4, whole.model.audio, 16), key=f"r{index}", image=image))
    spoil(folder, 1)
    loader = ImageLoader(with_data(whole, path=str(folder), batch_size=1), "train")
    name = f"{folder}/train-00000.mindrecord: split 'train', record 1 .'r1'. is damaged"
    with pytest.raises(DataError, match=f"^no record of the training data's source can be read; the first: {name}"):
        next(loader.batches())


def test_evaluation_is_not_measured_on_less(damaged: Config) -> None:
    """Metrics must not change silently."""
    with pytest.raises(BadRecordError, match=r"record 3 \('tiny-3'\) is damaged"):
        list(Loader(damaged, "train").evaluation(4))


def test_check_data_names_the_same_records(damaged: Config, capsys: pytest.CaptureFixture[str]) -> None:
    _, told = take(damaged, 12)
    with pytest.raises(DataError, match="problems, 32 records are good"):
        check.report(Path(damaged.data.path), 1)
    listed = capsys.readouterr().out.splitlines()
    for line in told:
        assert line.partition(": copy it")[0] in listed


def run(config: Config, folder: Path) -> Config:
    settings = {"steps": 8, "log_every": 1, "save_every": 3, "eval_every": 0, "keep_checkpoints": 9}
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    return replace(config, objectives=objectives, train=TrainConfig(**settings, output=str(folder)))


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def test_a_training_lives_with_them_and_resumes_exactly(
    damaged: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run(damaged, tmp_path / "run")
    ms.set_seed(0)
    Trainer(config).run()
    output = "".join(capfd.readouterr())
    for number in BAD:
        assert output.count(f"record {number} ('tiny-{number}')") == 1
    found = logged(tmp_path / "run")
    counts = [line.pop("bad_records", 0) for line in found]
    assert counts == sorted(counts) and counts[-1] == len(BAD)
    kill_after(tmp_path / "run", 3, tmp_path / "cut")
    Trainer(run(damaged, tmp_path / "cut"), resume=True).run()
    again = logged(tmp_path / "cut")
    for line in again:
        line.pop("bad_records", 0)
    assert again == found


def test_a_training_ends_with_the_first_of_them(
    damaged: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainStep, "__call__", lambda self, batch: None)
    monkeypatch.setattr(TrainStep, "result", lambda self: StepResult({"total": 1.0}, {}, 1.0, 0.1, False, 1.0, 0))
    trainer = Trainer(run(with_data(damaged, max_bad=2), tmp_path / "run"))
    with pytest.raises(DataError, match="^3 records of the training data cannot be read"):
        trainer.run()
    assert [line.get("bad_records", 0) for line in logged(tmp_path / "run")][-1] <= 2


def test_the_disk_that_is_full_at_a_run_s_end_does_not_hide_its_error(
    damaged: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ends by its data saves what is done; where that fails, too, both are told."""

    def full(*_: object, **__: object) -> None:
        raise CheckpointError("cannot write: No space left on device")

    monkeypatch.setattr(TrainStep, "__call__", lambda self, batch: None)
    monkeypatch.setattr(TrainStep, "result", lambda self: StepResult({"total": 1.0}, {}, 1.0, 0.1, False, 1.0, 0))
    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(DataError, match="^3 records of the training data cannot be read"):
        Trainer(run(with_data(damaged, max_bad=2), tmp_path / "run")).run()
    assert "cannot write: No space left on device" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_who_met_a_bad_record_tells_it(
    whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """The first rank in its log, another one on its own output: nobody else reads its part of a step."""
    trainer = Trainer(run(whole, tmp_path / "run"))
    trainer.rank = rank
    log = RunLog(tmp_path, 0, 9, True)
    trainer._tell_bad_records(["a.mindrecord: record 3", "a.mindrecord: record 4"], log)
    log.close()
    told = [line for line in capsys.readouterr().out.splitlines() if "a.mindrecord" in line]
    start = "rank 1, step 0: " if rank else "step 0: "
    assert told == [f"{start}a.mindrecord: record {number}" for number in (3, 4)]


def test_a_bad_record_with_several_captions_is_one(
    whole: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For what passes over some of the training's: it is named once, and counts once."""
    broken_images(tmp_path, whole, lambda index: False, 8)
    spoil(tmp_path, 1)
    read = LenientReader(Dataset(tmp_path, "train"), 1)
    assert [read(index) is None for index in (0, 1, 1, 1, 2)] == [False, True, True, True, False]
    assert capsys.readouterr().err.count("skipped: ") == 1
    spoil(tmp_path, 2)
    with pytest.raises(DataError, match="record 2 .* is damaged.*more than data.max_bad=1 records"):
        read(2)
