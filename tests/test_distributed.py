"""Two CPU ranks train on the mean of their gradients and contrast with each other's rows."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import tiny_dataset
from mindspore import Tensor, nn, ops
from test_training import MODEL_CONFIG

from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import MODEL, OPTIMIZER, locate, read_tensors
from src.config import (
    Config,
    DenoiseTextConfig,
    ImageTokenizerConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
    to_yaml,
)
from src.data.schema import AUDIO, IMAGE, batch_fields
from src.models.build import build_model
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.runtime import setup
from src.training.ranks import GatherRows, MeanGradients
from src.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
STEPS, RANKS = 2, 2


def train_by_hand(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """What the ranks should arrive at, by file: one process makes both ranks' gradients and averages them."""
    trainer = Trainer(config)
    step = trainer.step
    batches = [trainer.task.loader(config, "train", rank, RANKS).batches() for rank in range(RANKS)]
    places = list(step.optimizer.gradients)
    if step.after_update is not None:
        places += step.after_update.statistics
    for _ in range(STEPS):
        made = []
        for loader in batches:
            batch = next(loader)
            step.make_gradients(step.loss_scale.value(), *[Tensor(batch[name]) for name in step.fields])
            made.append([place.asnumpy().copy() for place in places])
        means = [np.mean(pair, axis=0) for pair in zip(*made, strict=True)]
        for place, mean in zip(places, means, strict=True):
            place.set_data(Tensor(mean))
        step.update(float(np.sqrt(sum((mean**2).sum() for mean in means[: len(step.optimizer.gradients)]))))
    files = {MODEL: dict(trainer.model.parameters_and_names()), OPTIMIZER: step.state()}
    return {file: {name: p.asnumpy() for name, p in parameters.items()} for file, parameters in files.items()}


@pytest.mark.e2e
@pytest.mark.parametrize("task", ["pretrain", "image_tokenizer"])
def test_two_ranks_train_on_their_mean_gradient(tmp_path, task):
    ms.set_context(mode=ms.GRAPH_MODE)
    tokenizer = ImageTokenizerConfig(size=16, side=4, codes=12, code_dim=6, width=16, layers=1, heads=2, ffn=32)
    base = tiny_dataset(tmp_path, config=Config(task=task, model=replace(MODEL_CONFIG, image_tokenizer=tokenizer)))
    model = build_model(base)
    if task == "image_tokenizer":  # a codebook in full use: none of its codes begins anew
        model.codebook.vectors.set_data(Tensor(np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)))
        model.codebook.counts.set_data(Tensor(np.full(12, 1000.0, np.float32)))
        model.codebook.sums.set_data(model.codebook.vectors * 1000.0)
    save_checkpoint(tmp_path / "checkpoints", 0, base, model)
    start = str(tmp_path / "checkpoints" / "step-00000000")
    settings = TrainConfig(steps=STEPS, log_every=1, save_every=STEPS, init_from=start)
    config = replace(
        base,
        objectives=ObjectivesConfig(
            weights=WeightsConfig(contrastive=0.0, denoise_text=1.0), denoise_text=DenoiseTextConfig(given=("image",))
        ),
        data=replace(base.data, batch_size=4),
        # neither clipped weights nor AdamW's would tell a sum of gradients from their mean; unclipped moments do
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1, clip_norm=1e4),
        train=replace(settings, output=str(tmp_path / "two")),
    )
    path = tmp_path / "two.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    environment = os.environ | {"DEVICE_TARGET": "CPU", "RANK_SIZE": "2", "CONFIG": str(path), "PYTHON": sys.executable}
    launcher = ["bash", str(ROOT / "scripts" / "run_distributed_ascend.sh")]
    done = subprocess.run(launcher, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    expected = train_by_hand(replace(config, train=replace(settings, output=str(tmp_path / "by-hand"))))
    for file, arrays in expected.items():
        found = read_tensors(locate(tmp_path / "two") / file)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            near = {"rtol": 0, "atol": 1e-5} if file == MODEL else {"rtol": 1e-3, "atol": 1e-6}
            np.testing.assert_allclose(found[name], array, err_msg=name, **near)
    largest = max(np.abs(array).max() for name, array in expected[OPTIMIZER].items() if name.startswith("adam_m"))
    assert largest > 1e-3, "moments that are all but zero would tell nothing"


ROWS = 3  # of a rank


class Contrastive(nn.Cell):
    """The contrastive loss of a rank's rows and the gradients averaged over the ranks."""

    def __init__(self, model: OPT, rows: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        gather = GatherRows(rank) if ranks > 1 else None
        self.objectives = Objectives(model, ObjectivesConfig(), rows, gather)
        parts = self.objectives.trained_parts()
        self.trained = {name: p for name, p in model.parameters_and_names() if name.split(".")[0] in parts}
        self.value_and_grad = ops.value_and_grad(self.loss, None, list(self.trained.values()))
        self.mean = MeanGradients(ranks) if ranks > 1 else None

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
    paths = (Path(sys.executable).parent, os.environ["PATH"])  # msrun starts the "python" on PATH
    environment = os.environ | {"PATH": ":".join(map(str, paths)), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    msrun = [sys.executable, "-m", "mindspore.parallel.cluster.run", f"--worker_num={RANKS}", "--join=True"]
    msrun += [f"--local_worker_num={RANKS}", f"--master_port={port}", f"--log_dir={tmp_path / 'logs'}"]
    command = [*msrun, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    expected = Contrastive(model, RANKS * ROWS).measure(whole_batch())
    found = [dict(np.load(tmp_path / f"rank-{rank}.npz")) for rank in range(RANKS)]
    assert np.mean([each.pop("loss") for each in found]) == pytest.approx(float(expected.pop("loss")), rel=1e-5)
    assert len(expected) > 20 and np.abs(expected["scale.log_scale"]) > 1e-4
    for each in found:
        assert each.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(each[name], gradient, rtol=1e-3, atol=1e-6, err_msg=name)


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
