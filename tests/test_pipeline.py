"""Batches: what is in them, that they repeat and resume, and that errors name the sample."""

import re
import shutil
import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import png, tiny_dataset

from src.config import AugmentConfig, Config, DenoiseImageConfig, MaskingConfig, ObjectivesConfig, WeightsConfig
from src.data.augment import augment_audio, augment_image
from src.data.errors import DataError
from src.data.image import decode_image
from src.data.masking import sample_rng
from src.data.pipeline import Batch, Loader
from src.data.prefetch import prefetch
from src.data.record import Record
from src.data.schema import AUDIO, IMAGE, TEXT, Field, batch_fields, check_batch
from src.data.writer import DatasetWriter


@pytest.fixture
def config(tiny: Config) -> Config:
    weights = WeightsConfig(mlm=1.0, matching=1.0, denoise_text=1.0)
    return replace(tiny, objectives=ObjectivesConfig(weights=weights))


def take(config: Config, first_step: int, count: int, **ranks: int) -> list[Batch]:
    """Steps behind so many of the same size."""
    loader = Loader(config, "train", **ranks)
    return list(islice(loader.batches(first_step * config.data.batch_size * loader.ranks), count))


def equal(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def test_batches_follow_the_schema_and_the_records(config: Config) -> None:
    loader = Loader(config, "train")
    assert loader.order.size == len(loader.dataset) == 30
    seen = set()
    for batch in islice(loader.batches(0), 3):
        check_batch(batch, batch_fields(config.model, 8, config.objectives.masking.ratio))
        for row, sample in enumerate(batch["sample_id"]):
            seen.add(int(sample))
            record, caption, image = loader.dataset.samples[sample]
            values = {name: value[row] for name, value in batch.items()}
            check_row(values, next(loader.dataset.read([record])), caption, loader)
            assert batch["image_id"][row] == image
    assert len(seen) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, "batch field 'a' is missing"),
        ({"c": np.zeros(2)}, "batch field 'c' is not in the schema"),
        ({"a": np.zeros((2, 3), np.int64)}, "batch field 'a' is int64[3], the schema says int32[3]"),
        ({"a": np.zeros((3, 2), np.int32)}, "batch field 'a' is int32[2], the schema says int32[3]"),
        ({"b": np.zeros((2, 1), np.float32)}, "batch field 'b' is float32[1], the schema says float32[]"),
    ],
)
def test_a_batch_that_is_not_of_the_schema_is_named(change: dict[str, np.ndarray | None], message: str) -> None:
    fields = {"a": Field(np.int32, (3,), "three numbers"), "b": Field(np.float32, (), "one")}
    good = {"a": np.zeros((2, 3), np.int32), "b": np.zeros(2, np.float32)}
    check_batch(good, fields)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_batch({name: value for name, value in (good | change).items() if value is not None}, fields)


def test_an_image_of_two_records_is_once_in_a_step(tmp_path: Path, tiny: Config) -> None:
    """The same file under two names, with data.unique_images."""
    size = tiny.model.image.size
    with DatasetWriter(tmp_path / "twice", tiny.model.audio, {"name": "twice"}) as writer:
        for index in range(8):
            image = png(np.full((size, size, 3), 30 * (index % 4), np.uint8))
            writer.add("train", Record(f"r{index}", image, ("猫",), (None,)))
    data = replace(tiny.data, path=str(tmp_path / "twice"), batch_size=4, unique_images=True)
    loader = Loader(replace(tiny, data=data), "train")
    for batch in islice(loader.batches(0), 6):
        assert len({image[0, 0, 0] for image in batch["image"]}) == 4 == len(set(batch["image_id"].tolist()))


def test_equal_texts_have_one_id_and_without_text_equal_audio_has(tmp_path: Path, tiny: Config) -> None:
    """Whatever the image, case, spaces and the vocabulary, which has none of these characters."""
    rng, audio = np.random.default_rng(0), tiny.model.audio
    some = rng.integers(1, 256, (9, audio.mels), np.uint8)
    other = some.copy()
    other[-1, -1] ^= 1

    def image() -> bytes:
        return png(rng.integers(0, 256, (8, 8, 3), np.uint8))

    with DatasetWriter(tmp_path / "data", audio, {}) as writer:
        for key, text, clip in (
            ("a", "三 Cafe", some),
            ("b", "三CAFÉ", other),
            ("c", "四 Cafe", some),
            ("d", None, some),
            ("e", None, some),
            ("f", None, other),
            ("g", None, None),
        ):
            writer.add("train", Record(key, image(), () if text is None else (text,), (clip,)))
    config = replace(tiny, data=replace(tiny.data, path=str(tmp_path / "data")))
    ((batch, _, names),) = Loader(config, "train").evaluation(7)
    a, b, c, d, e, f, g = (int(batch["text_id"][[key for key, _ in names].index(key)]) for key in "abcdefg")
    assert a == b and d == e and g == 0
    assert len({a, c, d, f, g}) == 5


def check_row(row: Batch, record: Record, caption: int, loader: Loader) -> None:
    model = loader.config.model
    assert row["presence"].tolist() == record.presence(caption)
    if row["presence"][IMAGE]:
        assert np.array_equal(row["image"], decode_image(record.image, model.image.size, "crop", ""))
    else:
        assert not row["image"].any()
    frames = int(row["audio_frames"])
    if row["presence"][AUDIO]:
        assert np.array_equal(row["audio"][:frames], record.audio[max(caption, 0)])
    assert (frames > 0) == bool(row["presence"][AUDIO]) and not row["audio"][frames:].any()
    if row["presence"][TEXT]:
        ids, mask = loader.tokenizer.encode(record.captions[caption], model.text.max_len)
        assert np.array_equal(row["text_ids"], ids) and np.array_equal(row["text_mask"], mask)
        assert row["mlm_weights"].sum() >= 1
        hidden = row["mlm_positions"][row["mlm_weights"] > 0]
        assert np.array_equal(ids[hidden], row["mlm_labels"][: len(hidden)])
    else:
        assert not any(row[name].any() for name in ("text_ids", "text_mask", "mlm_ids", "mlm_weights"))
    assert not row["denoise_text_presence"][TEXT] and (row["denoise_text_presence"] <= row["presence"]).all()
    assert (row["match_presence"] <= row["presence"]).all() and row["match_presence"].sum() in (0, 2, 3)


def test_any_step_is_the_step_of_the_whole_run(config: Config) -> None:
    whole = take(config, 0, 8)
    for first in (1, 3, 7):
        assert all(equal(a, b) for a, b in zip(whole[first:], take(config, first, 8 - first), strict=True))
    orders = [np.concatenate([batch["sample_id"] for batch in whole[start : start + 3]]) for start in (0, 3)]
    assert not np.array_equal(*orders), "the next epoch has another order"
    same = {int(s): whole[0]["match_noise"][row] for row, s in enumerate(whole[0]["sample_id"])}
    later = {int(s): batch["match_noise"][row] for batch in whole[3:6] for row, s in enumerate(batch["sample_id"])}
    assert not any(np.array_equal(same[s], later[s]) for s in same.keys() & later.keys()), "and other draws"


def test_workers_and_prefetch_change_nothing(config: Config) -> None:
    whole = take(config, 0, 6)
    for workers, ahead in ((3, 1), (2, 4)):
        other = replace(config, data=replace(config.data, workers=workers, prefetch=ahead))
        assert all(equal(a, b) for a, b in zip(whole, take(other, 0, 6), strict=True))


def test_another_seed_is_another_order(config: Config) -> None:
    other = take(replace(config, seed=2), 0, 1)[0]
    assert not np.array_equal(other["sample_id"], take(config, 0, 1)[0]["sample_id"])


def test_ranks_share_the_step(config: Config) -> None:
    half = replace(config, data=replace(config.data, batch_size=4))
    ranks = [take(half, 0, 4, rank=rank, ranks=2) for rank in (0, 1)]
    for step, whole in enumerate(take(config, 0, 4)):
        parts = [ranks[rank][step] for rank in (0, 1)]
        for name in whole.keys() - {"match_noise"}:  # which has a number for every row of the batch
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name]), name


def test_words_stay_visible_without_mlm(config: Config) -> None:
    batch = take(replace(config, objectives=ObjectivesConfig()), 0, 1)[0]
    masked = take(config, 0, 1)[0]
    assert np.array_equal(batch["mlm_ids"], batch["text_ids"]) and not batch["mlm_weights"].any()
    others = [name for name in batch if not name.startswith("mlm")]
    assert all(np.array_equal(batch[name], masked[name]) for name in others)


def test_what_is_set_for_one_objective_changes_no_other(config: Config) -> None:
    def batch_of(**sections: object) -> Batch:
        (batch,) = take(replace(config, objectives=replace(config.objectives, **sections)), 0, 1)
        return batch

    def changed(one: Batch, other: Batch) -> set[str]:
        return {name for name in one if not np.array_equal(one[name], other[name])}

    short, long = (batch_of(masking=MaskingConfig(audio_span=span)) for span in (1, 5))
    assert {"mam_positions"} <= changed(short, long) <= {name for name in short if name.startswith(("mam", "mlm"))}
    never, always = (batch_of(denoise_image=DenoiseImageConfig(drop_given=drop)) for drop in (0.0, 0.999))
    assert changed(never, always) == {"denoise_image_presence"} and not always["denoise_image_presence"].any()


def test_images_and_clips_are_augmented_by_streams_of_their_own(config: Config) -> None:
    """Of seed, epoch and sample: neither the other's augmentation nor the masks follow from it."""
    views = AugmentConfig(crop_scale=(0.3, 0.9), flip=0.5, time_masks=1, time_share=0.5, frequency_masks=1)
    varied = replace(config, data=replace(config.data, augment=views))
    loader, side = Loader(varied, "train"), config.model.image.size
    for epoch in (0, 1):
        batch = next(loader.batches(epoch * loader.order.size))
        for row, number in enumerate(batch["sample_id"].tolist()):
            index, caption, _ = loader.dataset.samples[number]
            record = next(loader.dataset.read([index]))
            image_rng, audio_rng = (sample_rng(config.seed, epoch, number, purpose) for purpose in (2, 3))
            if batch["presence"][row, IMAGE]:
                expected = augment_image(record, side, "crop", "", views, image_rng)
                assert np.array_equal(batch["image"][row], expected)
            if batch["presence"][row, AUDIO]:
                expected = augment_audio(record.audio[max(caption, 0)], views, audio_rng)
                assert np.array_equal(batch["audio"][row, : len(expected)], expected)


def test_evaluation_is_in_order_and_padded(config: Config) -> None:
    loader = Loader(config, "dev")
    total = len(loader.dataset)
    parts = list(loader.evaluation(5, 0))
    assert [count for _, count, _ in parts] == [5] * (total // 5) + ([total % 5] if total % 5 else [])
    ids = np.concatenate([batch["sample_id"][:count] for batch, count, _ in parts])
    assert ids.tolist() == list(range(total))
    batch, count, samples = parts[-1]
    assert len(batch["image"]) == 5 and (batch["sample_id"][count:] == total - 1).all() and len(samples) == count
    names = [sample for _, _, part in parts for sample in part]
    keys = {record.key: record for record in loader.dataset.read(np.unique(loader.dataset.samples[:, 0]))}
    for (key, text), (_, caption, _) in zip(names, loader.dataset.samples, strict=True):
        assert text == (keys[key].captions[caption] if caption >= 0 else "")
    again = list(loader.evaluation(5, 7))
    assert [count for _, count, _ in again] == [5, 2]
    assert equal(again[0][0], parts[0][0])


def test_evaluation_has_the_masks_of_the_first_epoch_whatever_the_order(config: Config) -> None:
    training = take(config, 0, 3)
    ids = np.concatenate([batch["sample_id"] for batch in training])
    trained = {name: np.concatenate([batch[name] for batch in training]) for name in training[0]}
    loader = Loader(config, "train")
    for order in (ids, ids[::-1]):
        parts = [batch for batch, _, _ in loader.evaluation(8, order=order)]
        found = {name: np.concatenate([batch[name] for batch in parts]) for name in parts[0]}
        assert equal(
            found,
            {name: column[np.argsort(ids)[np.searchsorted(np.sort(ids), order)]] for name, column in trained.items()},
        )


def test_a_broken_image_is_named(config: Config, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, config.model.audio, {}) as writer:
        for index in range(8):
            writer.add("train", Record(f"k{index}", b"no image", (), ()))
    broken = replace(config, data=replace(config.data, path=str(tmp_path)))
    with pytest.raises(DataError, match=r"split 'train', record 0 \('k0'\): not a readable image"):
        next(Loader(broken, "train").evaluation(4, 0))


def test_too_few_samples_for_a_step(config: Config) -> None:
    large = replace(config, data=replace(config.data, batch_size=20))
    with pytest.raises(DataError, match="split 'train' has 30 samples, a step takes 40: lower data.batch_size"):
        next(Loader(large, "train", 0, 2).batches(0))
    assert len(list(Loader(large, "dev").evaluation(40, 0))) == 1


def test_other_audio_settings_are_refused(config: Config) -> None:
    audio = replace(config.model.audio, mels=80)
    with pytest.raises(DataError, match="mels=64, model.audio has mels=80"):
        Loader(replace(config, model=replace(config.model, audio=audio)), "train")


def test_longer_audio_is_cut(config: Config) -> None:
    short = replace(config, model=replace(config.model, audio=replace(config.model.audio, max_frames=40)))
    batch, whole = take(short, 0, 1)[0], take(config, 0, 1)[0]
    assert batch["audio"].shape[1] == 40 and np.array_equal(batch["audio"], whole["audio"][:, :40])
    assert np.array_equal(batch["audio_frames"], np.minimum(whole["audio_frames"], 40))


def threads() -> int:
    return sum(thread.name.startswith(("batches", "decode")) for thread in threading.enumerate())


def test_dropping_the_iterator_ends_its_threads(config: Config) -> None:
    many = replace(config, data=replace(config.data, workers=2))
    before = threads()
    batches = Loader(many, "train").batches(0)
    next(batches)
    assert threads() > before
    del batches
    assert threads() == before
    evaluation = Loader(many, "dev").evaluation(2, 0)
    next(evaluation)
    evaluation.close()
    assert threads() == before


def test_batches_are_made_ahead_but_not_without_end() -> None:
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    items = prefetch(source(), 3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 5  # one taken, three waiting, one in hand
    assert list(items) == list(range(1, 100))


def test_a_dataset_moves_with_its_folder(tmp_path: Path) -> None:
    config = tiny_dataset(tmp_path / "here", 8)
    first = take(config, 0, 1)[0]
    shutil.move(tmp_path / "here", tmp_path / "there")
    text = replace(config.model.text, vocab=str(tmp_path / "there" / "vocab.txt"))
    data = replace(config.data, path=str(tmp_path / "there" / "data"))
    assert equal(take(replace(config, model=replace(config.model, text=text), data=data), 0, 1)[0], first)
