"""Two CPU ranks train on the mean of their gradients and contrast with each other's rows."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, tiny_dataset, tiny_record
from mindspore import Tensor, nn, ops
from ranks import assert_same_files, launch, saved_start, start_ranks

from src import cli
from src.checkpoints.files import EMA, MODEL, OPTIMIZER, read_tensors
from src.checkpoints.places import locate
from src.config import (
    Config,
    ImageTokenizerConfig,
    MaskingConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
)
from src.data.schema import AUDIO, IMAGE, batch_fields
from src.data.writer import DatasetWriter
from src.models.build import build_model
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.peers import Peers
from src.runtime import setup
from src.training.pace import TIMINGS
from src.training.ranks import MeanOverRanks
from src.training.trainer import Trainer

pytestmark = pytest.mark.ranks
STEPS, RANKS = 2, 2


def train_by_hand(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """What the ranks should arrive at, by file: one process makes both ranks' gradients and averages them."""
    trainer = Trainer(config)
    step = trainer.step
    batches = [trainer.task.loader(config, "train", rank, RANKS).batches() for rank in range(RANKS)]
    for _ in range(STEPS):
        made = []
        for loader in batches:
            batch = next(loader)
            tensors = [Tensor(batch[name]) for name in step.fields]
            losses, gradients, statistics = step.gradients(step.update.loss_scale.value(), *tensors)
            made.append([tensor.asnumpy().copy() for tensor in (losses, *gradients, *statistics)])
        means = [Tensor(np.mean(pair, axis=0)) for pair in zip(*made, strict=True)]
        first = 1 + len(gradients)
        step.update(means[0], tuple(means[1:first]), tuple(means[first:]))
    files = {MODEL: dict(trainer.model.parameters_and_names()), OPTIMIZER: step.state()}
    return {file: {name: p.asnumpy() for name, p in parameters.items()} for file, parameters in files.items()}


@pytest.mark.e2e
def test_two_ranks_train_on_their_mean_gradient(tmp_path):
    """An image tokenizer, with its codebook's statistics."""
    ms.set_context(mode=ms.GRAPH_MODE)
    tokenizer = ImageTokenizerConfig(size=16, side=4, codes=12, code_dim=6, width=16, layers=1, heads=2, ffn=32)
    own = Config(task="image_tokenizer", model=replace(MODEL_CONFIG, image_tokenizer=tokenizer))
    base = tiny_dataset(tmp_path, config=own)
    model = build_model(base)
    # a codebook in full use: none of its codes begins anew
    model.codebook.vectors.set_data(Tensor(np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)))
    model.codebook.counts.set_data(Tensor(np.full(12, 1000.0, np.float32)))
    model.codebook.sums.set_data(model.codebook.vectors * 1000.0)
    settings = TrainConfig(steps=STEPS, log_every=1, save_every=STEPS, init_from=saved_start(tmp_path, base, model))
    config = replace(
        base,
        data=replace(base.data, batch_size=4),
        # neither clipped weights nor AdamW's would tell a sum of gradients from their mean; unclipped moments do
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1, clip_norm=1e4),
        train=replace(settings, output=str(tmp_path / "two")),
    )
    launch(config, tmp_path)
    expected = train_by_hand(replace(config, train=replace(settings, output=str(tmp_path / "by-hand"))))
    assert_same_files(tmp_path / "two", expected)
    largest = max(np.abs(array).max() for name, array in expected[OPTIMIZER].items() if name.startswith("adam_m"))
    assert largest > 1e-3, "moments that are all but zero would tell nothing"


def uneven_dataset(folder: Path, config: Config) -> Config:
    """Samples of which many lack a modality or more: ranks differ in how much of each they have."""
    config = tiny_dataset(folder, config=config)
    rng = np.random.default_rng(0)
    with DatasetWriter(folder / "uneven", config.model.audio, {"name": "uneven"}, shard_records=10) as writer:
        for index in range(40):
            record = tiny_record(rng, index, config.model.audio, config.model.image.size)
            if index % 5 < 3:
                record = replace(record, audio=(None,) * len(record.audio))
            elif index % 5 == 3:
                record = replace(record, image=None)
            writer.add("train", record)
    return replace(config, data=replace(config.data, path=str(folder / "uneven")))


@pytest.mark.e2e
def test_two_ranks_train_as_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    """Twenty steps, although hardly two ranks' batches have as many images or clips: losses, norms and weights."""
    ms.set_context(mode=ms.GRAPH_MODE)
    base = uneven_dataset(tmp_path, Config(model=replace(MODEL_CONFIG, masked_features=True)))
    start = saved_start(tmp_path, base)
    # matching samples its negatives among a rank's own rows, and so depends on how many these are
    names = ("contrastive", "mlm", "mvm_feature", "mam_feature", "mam_contrastive", "denoise_text")
    config = replace(
        base,
        objectives=ObjectivesConfig(
            weights=WeightsConfig(**dict.fromkeys(names, 1.0)), masking=MaskingConfig(ratio=0.4)
        ),
        # an epsilon above the rounding of a gradient: AdamW would make a step of noise
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=2, eps=1e-3),
        data=replace(base.data, batch_size=4),
        train=TrainConfig(
            steps=20, log_every=1, save_every=20, output=str(tmp_path / "two"), init_from=start, ema_decay=0.9
        ),
    )
    launch(config, tmp_path)
    data, train = replace(config.data, batch_size=8), replace(config.train, output=str(tmp_path / "one"))
    Trainer(replace(config, data=data, train=train)).run()
    logs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("two", "one")
    ]
    assert len(logs[0]) == len(logs[1]) == 20
    for found, expected in zip(*logs, strict=True):
        for name in TIMINGS:
            del found[name], expected[name]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    one = locate(tmp_path / "one")
    assert_same_files(tmp_path / "two", {file: read_tensors(one / file) for file in (MODEL, EMA)})


ROWS = 3  # of a rank


class Contrastive(nn.Cell):
    """The contrastive loss and the gradients of a rank's rows, averaged over the ranks."""

    def __init__(self, model: OPT, rows: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.objectives = Objectives(model, ObjectivesConfig(), rows, Peers(rank, ranks))
        parts = self.objectives.trained_parts()
        self.trained = {name: p for name, p in model.parameters_and_names() if name.split(".")[0] in parts}
        self.value_and_grad = ops.value_and_grad(self.loss, None, list(self.trained.values()))
        self.mean = MeanOverRanks(ranks) if ranks > 1 else None

    def loss(self, *tensors):
        batch = {}
        for name, tensor in zip(self.objectives.fields, tensors):  # noqa: B905 - the graph compiler has no strict=
            batch[name] = tensor
        return self.objectives(batch)[0]

    def construct(self, *tensors):
        loss, gradients = self.value_and_grad(*tensors)
        return loss, gradients if self.mean is None else self.mean(gradients)

    def measure(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        loss, gradients = self(*[Tensor(batch[name]) for name in self.objectives.fields])
        named = dict(zip(self.trained, (gradient.asnumpy() for gradient in gradients), strict=True))
        return {"loss": loss.asnumpy(), **named}


def whole_batch() -> dict[str, np.ndarray]:
    """The rows of both ranks; one image is on both ranks, another twice on the second; so are two texts.

    The ranks have pairs of their own number: the first lacks an audio clip, the second an image and an audio clip.
    """
    rng = np.random.default_rng(0)
    rows = RANKS * ROWS
    batch = {}
    for name, field in batch_fields(MODEL_CONFIG, rows, 0.5).items():
        batch[name] = rng.integers(1, 4, (rows, *field.shape)).astype(field.dtype)
    batch["presence"][:] = 1
    batch["text_mask"][:] = 1
    batch["text_ids"][:] = rng.integers(5, 20, batch["text_ids"].shape)
    batch["image"][:] = rng.integers(0, 256, batch["image"].shape)
    batch["audio"][:] = rng.integers(0, 256, batch["audio"].shape)
    batch["audio_frames"][:] = MODEL_CONFIG.audio.max_frames
    batch["image_id"][:] = [7, 1, 2, 7, 5, 5]
    batch["text_id"][:] = [3, 4, 5, 6, 3, 3]
    batch["presence"][[1, 4], AUDIO] = batch["presence"][3, IMAGE] = 0
    return batch


def run_rank(folder: Path) -> None:
    """What each process that msrun starts does."""
    rank, ranks = setup(RuntimeConfig(distributed=True), 1)
    model = OPT(MODEL_CONFIG, 30)
    for name, array in np.load(folder / "weights.npz").items():
        dict(model.parameters_and_names())[name].set_data(Tensor(array))
    mine = {name: rows[rank * ROWS : (rank + 1) * ROWS] for name, rows in whole_batch().items()}
    np.savez(folder / f"rank-{rank}.npz", **Contrastive(model, ROWS, rank, ranks).measure(mine))


@pytest.mark.e2e
def test_two_ranks_contrast_as_one_with_all_rows(tmp_path):
    """The mean of the ranks' losses, and each rank's averaged gradients, are those of one process with all rows."""
    ms.set_context(mode=ms.GRAPH_MODE)
    model = OPT(MODEL_CONFIG, 30)
    np.savez(tmp_path / "weights.npz", **{name: p.asnumpy() for name, p in model.parameters_and_names()})
    start_ranks(__file__, tmp_path, RANKS)
    expected = Contrastive(model, RANKS * ROWS).measure(whole_batch())
    found = [dict(np.load(tmp_path / f"rank-{rank}.npz")) for rank in range(RANKS)]
    assert np.mean([each.pop("loss") for each in found]) == pytest.approx(float(expected.pop("loss")), rel=1e-5)
    assert len(expected) > 20 and np.abs(expected["scale.log_scale"]) > 1e-4
    for each in found:
        assert each.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(each[name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)


if __name__ == "__main__":
    cli.run(lambda: run_rank(Path(sys.argv[1])))
