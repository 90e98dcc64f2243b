"""Several corpora in one training: by weight, whatever each of them lacks, from any step, with random views."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, edit_info, png, tiny_dataset, tiny_record
from mindspore import Tensor, nn
from test_pipeline import equal, threads

from src.config import (
    AugmentConfig,
    Config,
    MaskingConfig,
    ObjectivesConfig,
    OptimizerConfig,
    SourceConfig,
    TrainConfig,
    WeightsConfig,
)
from src.data import sources
from src.data.errors import DataError
from src.data.images import ImageLoader
from src.data.pipeline import Batch, Loader
from src.data.record import Record
from src.data.schema import AUDIO, IMAGE, TEXT, batch_fields, check_batch
from src.data.store import describe, read_info
from src.data.writer import DatasetWriter
from src.models.build import build_model
from src.objectives.objectives import Objectives
from src.training.trainer import Trainer
from tests.oracles import make_gradients

MODEL = replace(MODEL_CONFIG, masked_features=True)
OBJECTIVES = ObjectivesConfig(
    weights=WeightsConfig(
        mlm=0.5, mvm_feature=0.5, mam_feature=0.5, mam_contrastive=0.5, matching=0.5, denoise_text=1.0
    ),
    masking=MaskingConfig(ratio=0.4),
)
VIEWS = AugmentConfig(crop_scale=(0.3, 0.9), flip=0.5, brightness=0.4, time_masks=1, time_share=0.5, frequency_masks=1)
AUDIO_LOSSES = ("mam_feature", "mam_contrastive")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A corpus of all modalities."""
    base = tiny_dataset(tmp_path_factory.mktemp("spoken"), 32, Config(model=MODEL, objectives=OBJECTIVES))
    return replace(base, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1))


@pytest.fixture(scope="module")
def silent(spoken: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions, and no audio at all."""
    folder, rng = tmp_path_factory.mktemp("silent"), np.random.default_rng(5)
    with DatasetWriter(folder, spoken.model.audio, {"name": "silent"}) as writer:
        for index in range(12):
            made = tiny_record(rng, 8 * index + 3, spoken.model.audio, 32)  # two captions each
            writer.add("train", replace(made, key=f"silent-{index}", audio=()))
    return folder


@pytest.fixture(scope="module")
def mixed(spoken: Config, silent: Path) -> Config:
    listed = (SourceConfig(spoken.data.path, 3.0), SourceConfig(str(silent), 1.0))
    return replace(spoken, data=replace(spoken.data, path="", sources=listed))


@pytest.fixture(autouse=True)
def graph_mode():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


class Forward(nn.Cell):
    """The losses without their gradients, of tensors in the order of the objectives' fields."""

    def __init__(self, objectives: Objectives) -> None:
        super().__init__()
        self.objectives, self.fields = objectives, objectives.fields

    def construct(self, *tensors):
        batch = {}
        for i in range(len(self.fields)):
            batch[self.fields[i]] = tensors[i]
        return self.objectives(batch)


@pytest.fixture(scope="module")
def losses(mixed: Config) -> Callable[[Batch], dict[str, float]]:
    """Every loss of a batch, by an untrained model."""
    objectives = Objectives(build_model(mixed), mixed.objectives, 8)
    forward = Forward(objectives)

    def run(batch: Batch) -> dict[str, float]:
        values = forward(*(Tensor(batch[name]) for name in objectives.fields))
        return dict(zip(("total", *objectives.names), map(float, values), strict=True))

    return run


def with_data(config: Config, **changes: object) -> Config:
    return replace(config, data=replace(config.data, **changes))


def take(config: Config, first: int, count: int, **ranks: int) -> list[Batch]:
    """Steps behind so many of the same size."""
    loader = Loader(config, "train", **ranks)
    batches = loader.batches()
    for _ in range(first):
        next(batches)
    place = batches.place
    batches.close()
    return list(islice(loader.batches(**place), count))


def test_an_epoch_mixes_by_weight_and_every_row_is_its_record(mixed: Config) -> None:
    loader = Loader(mixed, "train")
    total = len(loader.sources)
    spoken, silent = loader.sources.datasets
    assert total == loader.order.size == len(spoken) + len(silent)
    epoch = list(islice(loader.batches(), total // 8))
    ids = np.concatenate([batch["sample_id"] for batch in epoch])
    assert abs(np.count_nonzero(ids < len(spoken)) - 0.75 * len(ids)) < 4
    by_number: dict[int, Batch] = {}
    for batch in epoch:
        check_batch(batch, batch_fields(mixed.model, 8, mixed.objectives.masking.ratio))
        for row, number in enumerate(batch["sample_id"].tolist()):
            by_number[number] = {name: value[row] for name, value in batch.items()}
    for number, row in by_number.items():
        dataset, place = (spoken, number) if number < len(spoken) else (silent, number - len(spoken))
        record, caption, _ = dataset.samples[place]
        found = next(dataset.read([record]))
        assert row["presence"].tolist() == found.presence(caption)
        if row["presence"][TEXT]:
            assert np.array_equal(row["text_ids"], loader.tokenizer.encode(found.captions[caption], 12)[0])
    assert not any(row["presence"][AUDIO] or row["audio"].any() for n, row in by_number.items() if n >= len(spoken))


def test_images_of_two_sources_are_never_the_same(mixed: Config) -> None:
    loader = Loader(mixed, "train")
    images = loader.sources.samples[:, 2]
    first = len(loader.sources.datasets[0])
    assert not np.intersect1d(images[:first], images[first:]).size
    assert len(np.unique(images)) == sum(len(np.unique(d.samples[:, 2])) for d in loader.sources.datasets)
    alone = Loader(with_data(mixed, sources=(), path=mixed.data.sources[1].path), "train")
    assert np.array_equal(images[first:] - images[first], alone.sources.samples[:, 2])


def test_any_step_of_a_mixture_is_the_step_of_the_whole_run(mixed: Config) -> None:
    varied = with_data(mixed, augment=VIEWS, unique_images=True)
    steps = Loader(varied, "train").order.size // 8
    whole = take(varied, 0, 3 * steps)
    for first in (1, steps - 1, steps, 2 * steps + 3):
        assert all(equal(a, b) for a, b in zip(whole[first:], take(varied, first, 3), strict=False)), first
    workers = with_data(varied, workers=3, prefetch=1)
    assert all(equal(a, b) for a, b in zip(whole, take(workers, 0, steps), strict=False))
    for batch in whole:
        assert len(np.unique(batch["image_id"])) == len(batch["image_id"]), "no image twice"


def test_ranks_share_the_step_of_a_mixture(mixed: Config) -> None:
    half = with_data(mixed, batch_size=4, unique_images=True)
    ranks = [take(half, 2, 6, rank=rank, ranks=2) for rank in (0, 1)]
    for step, whole in enumerate(take(with_data(half, batch_size=8), 2, 6)):
        parts = [ranks[rank][step] for rank in (0, 1)]
        for name in ("sample_id", "image", "text_ids"):
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_a_sample_that_comes_again_draws_anew(mixed: Config) -> None:
    """Also within an epoch, which takes more of a source than it holds."""
    first, second = mixed.data.sources
    heavy = with_data(mixed, sources=(first, replace(second, weight=12.0)))
    loader = Loader(heavy, "train")
    seen: dict[int, np.ndarray] = {}
    again = 0
    for batch in islice(loader.batches(), loader.order.size // 8):
        for number, noise in zip(batch["sample_id"].tolist(), batch["match_noise"], strict=True):
            again += number in seen
            assert not np.array_equal(seen.get(number), noise)
            seen[number] = noise
    assert again > 5


def test_views_vary_in_training_alone_and_change_nothing_else(spoken: Config) -> None:
    varied = with_data(spoken, augment=VIEWS)
    changed = {"image": 0, "audio": 0}
    for plain, other in zip(take(spoken, 0, 4), take(varied, 0, 4), strict=True):
        for name in plain:
            if name in changed:
                changed[name] += not np.array_equal(plain[name], other[name])
            else:
                assert np.array_equal(plain[name], other[name]), name
        frames = other["audio_frames"]
        assert not any(clip[count:].any() for clip, count in zip(other["audio"], frames, strict=True))
    assert min(changed.values()) >= 3
    only = with_data(spoken, augment=replace(VIEWS, crop_scale=(), flip=0.0, brightness=0.0))
    for both, clip in zip(take(varied, 0, 2), take(only, 0, 2), strict=True):
        assert np.array_equal(both["audio"], clip["audio"]), "audio clips vary alike, whether images do or not"
    for one, two in zip(Loader(spoken, "dev").evaluation(8), Loader(varied, "dev").evaluation(8), strict=True):
        assert equal(one[0], two[0])


def test_an_image_of_which_any_record_tells_the_sides_is_not_mirrored(spoken: Config, tmp_path: Path) -> None:
    """As two people's narratives are stored; the mirrored image of one would stand for the text of the other."""
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[:, :, 0] = np.arange(32) * 8
    texts = {"plain": "一只猫", "told": "左边一只猫", "again": "两只猫"}
    images = {"plain": png(ramp + np.uint8(1)), "told": png(ramp), "again": png(ramp)}
    for name, order in (("first", ("told", "again", "plain")), ("last", ("plain", "again", "told"))):
        with DatasetWriter(tmp_path / name, spoken.model.audio, {}, shard_records=1) as writer:
            for key in order:
                writer.add("train", Record(key, images[key], (texts[key],), ()))
    for name in ("first", "last"):
        config = with_data(spoken, path=str(tmp_path / name), augment=AugmentConfig(flip=1.0), batch_size=3)
        loader = Loader(config, "train")
        batches = loader.batches()
        batch = next(batches)
        batches.close()
        keys = [record.key for record in loader.dataset.read(loader.dataset.samples[batch["sample_id"], 0])]
        mirrored = {
            key: bool(image[0, 0, 0] > image[0, -1, 0]) for key, image in zip(keys, batch["image"], strict=True)
        }
        assert mirrored == {"plain": True, "told": False, "again": False}


def test_images_for_the_image_tokenizer_mix_and_vary_as_well(mixed: Config) -> None:
    model = replace(mixed.model, image_tokenizer=replace(mixed.model.image_tokenizer, size=32))
    plain, varied = (replace(config, model=model) for config in (mixed, with_data(mixed, augment=VIEWS)))
    loader = ImageLoader(plain, "train")
    pictures = [dataset.info["splits"]["train"]["pictures"] for dataset in loader.sources.datasets]
    assert 0 < len(loader.ids) <= sum(pictures)
    first, other = (next(ImageLoader(config, "train").batches(8)) for config in (plain, varied))
    assert np.array_equal(first["sample_id"], other["sample_id"])
    assert not np.array_equal(first["image"], other["image"])
    assert equal(other, next(ImageLoader(varied, "train").batches(8)))
    assert {int(n) < len(loader.dataset) for n in first["sample_id"]} == {True, False}


def test_only_what_has_an_image_is_one_for_the_image_tokenizer(spoken: Config, mixed: Config, tmp_path: Path) -> None:
    """Also where the index does not say it, as those of earlier versions."""
    colours = (10, None, 30, 40, 10, None)
    with DatasetWriter(tmp_path / "gaps", spoken.model.audio, {}) as writer:
        for number, value in enumerate(colours):
            image = None if value is None else png(np.full((32, 32, 3), value, np.uint8))
            writer.add("train", Record(f"gap-{number}", image, ("一二", "三"), ()))
    listed = (SourceConfig(spoken.data.path, 1.0), SourceConfig(str(tmp_path / "gaps"), 1.0))
    model = replace(mixed.model, image_tokenizer=replace(mixed.model.image_tokenizer, size=32))
    config = replace(with_data(mixed, sources=listed), model=model)
    found = []
    for earlier in (False, True):
        if earlier:
            path = tmp_path / "gaps" / "index-train.npy"
            np.save(path, np.load(path)[:, :3])
            splits = read_info(tmp_path / "gaps")["splits"]
            edit_info(tmp_path / "gaps", {"splits": {"train": splits["train"] | {"index": describe(path)}}})
        loader = ImageLoader(config, "train")
        first = loader.sources.first_samples[1]
        ((batch, count, _),) = loader.evaluation(3, order=loader.ids[loader.ids >= first])
        assert batch["image"][:count, 0, 0, 0].tolist() == [10, 30, 40]
        found.append(loader.ids.tolist())
    assert found[0] == found[1] and [n - first for n in found[0] if n >= first] == [0, 4, 6]
    batches = loader.batches()
    epoch = [number for _ in range(loader.order.size // 8) for number in next(batches)["sample_id"].tolist()]
    batches.close()
    assert set(epoch) <= set(found[0]) and len(set(epoch)) > 8


def test_evaluation_reads_one_dataset(mixed: Config, silent: Path) -> None:
    held_out = Loader.held_out(mixed, "dev")  # the second source has no such split
    assert [str(d.folder) for d in held_out.sources.datasets] == [mixed.data.sources[0].path]
    assert len(list(held_out.evaluation(4))) > 0
    named = with_data(mixed, eval_path=str(silent))
    assert Loader.held_out(named, "train").dataset.folder == silent
    alone = with_data(mixed, sources=(), path=mixed.data.sources[0].path)
    assert Loader.held_out(alone, "dev").dataset.folder == held_out.dataset.folder
    assert Loader.held_out(with_data(alone, eval_path=str(silent)), "train").dataset.folder == silent


def test_a_split_that_a_source_lacks_is_named(mixed: Config, silent: Path) -> None:
    with pytest.raises(DataError, match=f"{silent} has no split 'dev'"):
        Loader(mixed, "dev")
    with pytest.raises(DataError, match=f"{mixed.data.sources[0].path}, {silent}: split 'train' has .* samples"):
        next(Loader(with_data(mixed, batch_size=100), "train").batches())


def test_each_source_has_codes_of_its_own(mixed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DatasetWriter(tmp_path / "words", mixed.model.audio, {}) as writer:
        for index in range(8):
            made = tiny_record(np.random.default_rng(index), 3, mixed.model.audio, 32)
            writer.add("train", replace(made, image=None))
    asked = []

    def open_codes(dataset, config):
        asked.append(str(dataset.folder))
        return np.arange(dataset.records)[:, None] + np.full((1, 64), 100 * len(asked))

    monkeypatch.setattr(sources, "open_codes", open_codes)
    listed = (*mixed.data.sources, SourceConfig(str(tmp_path / "words"), 1.0))
    loader = Loader(with_data(mixed, codes="tokenizer", sources=listed), "train")
    loader.sources.open_codes(loader.config)
    assert asked == [source.path for source in listed[:2]], "without an image none are needed"
    starts = [0, *np.cumsum([dataset.records for dataset in loader.sources.datasets])]
    for batch in islice(loader.batches(), 4):
        records = loader.sources.samples[batch["sample_id"], 0]
        source = np.searchsorted(starts, records, side="right") - 1
        expected = np.where(source < 2, 100 * (source + 1) + records - np.take(starts, source), -1)
        assert np.array_equal(batch["image_codes"], np.repeat(expected[:, None], 64, 1))


def test_dropping_a_mixture_ends_its_threads(mixed: Config) -> None:
    before = threads()
    batches = Loader(with_data(mixed, workers=2), "train").batches()
    next(batches)
    batches.close()
    assert threads() == before


def test_a_corpus_trains_with_the_losses_that_apply(mixed: Config, silent: Path, losses: Callable) -> None:
    both = losses(take(mixed, 1, 1)[0])
    assert np.isfinite(list(both.values())).all() and min(both.values()) > 0
    alone = losses(take(with_data(mixed, sources=(), path=str(silent)), 0, 1)[0])
    assert np.isfinite(list(alone.values())).all()
    assert all(alone[name] == 0 for name in AUDIO_LOSSES)
    assert all(alone[name] > 0 for name in alone.keys() - set(AUDIO_LOSSES))


def test_rows_without_audio_do_not_count_in_the_losses_of_audio(mixed: Config, losses: Callable) -> None:
    """Whatever stands in their place, and whatever their images are."""
    batch = take(mixed, 1, 1)[0]
    absent = batch["presence"][:, AUDIO] == 0
    assert 0 < absent.sum() < 8
    expected = losses(batch)
    other = {name: value.copy() for name, value in batch.items()}
    other["audio"][absent] = np.random.default_rng(0).integers(0, 256, other["audio"][absent].shape)
    assert losses(other) == pytest.approx(expected, rel=1e-6)
    other["image"][absent & (batch["presence"][:, IMAGE] == 1)] = 7
    found = losses(other)
    assert all(found[name] == pytest.approx(expected[name], rel=1e-6) for name in AUDIO_LOSSES)
    assert found["contrastive"] != pytest.approx(expected["contrastive"], rel=1e-6)


def test_a_mixture_trains_and_silence_leaves_the_audio_alone(mixed: Config, silent: Path, tmp_path: Path) -> None:
    objectives = ObjectivesConfig(
        weights=WeightsConfig(contrastive=1.0, mam_feature=0.5), masking=MaskingConfig(ratio=0.4)
    )
    run = replace(mixed, objectives=objectives, train=TrainConfig(output=str(tmp_path / "run"), steps=3))
    run = with_data(run, augment=VIEWS, unique_images=True)
    trainer = Trainer(run)

    def reached(batch: Batch) -> dict[str, bool]:
        found, gradients, _ = make_gradients(trainer.step, batch)
        assert np.isfinite(list(found.values())).all() and found["contrastive"] > 0
        return {
            part: any(array.any() for name, array in gradients.items() if f"{part}_encoder" in name)
            for part in ("audio", "image")
        }

    alone = next(Loader(with_data(run, sources=(), path=str(silent)), "train").batches())
    assert reached(alone) == {"audio": False, "image": True}
    assert reached(next(trainer.loader.batches())) == {"audio": True, "image": True}
