"""Two CPU ranks train on the mean of their gradients."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import tiny_dataset
from mindspore import Tensor
from test_training import MODEL_CONFIG

from src.config import Config, ImageTokenizerConfig, ObjectivesConfig, OptimizerConfig, TrainConfig, to_yaml
from src.training.checkpoint import MODEL, build_model, locate, read_tensors, save_checkpoint
from src.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
STEPS, RANKS = 2, 2


def train_by_hand(config: Config) -> dict[str, np.ndarray]:
    """What the ranks should arrive at: one process makes both ranks' gradients and averages them."""
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
    return {name: parameter.asnumpy() for name, parameter in trainer.model.parameters_and_names()}


@pytest.mark.e2e
@pytest.mark.parametrize("task", ["pretrain", "image_tokenizer"])
def test_two_ranks_train_on_their_mean_gradient(tmp_path, task):
    ms.set_context(mode=ms.GRAPH_MODE)
    tokenizer = ImageTokenizerConfig(size=16, side=4, codes=12, code_dim=6, width=16, layers=1, heads=2, ffn=32)
    base = tiny_dataset(tmp_path, config=Config(task=task, model=replace(MODEL_CONFIG, tokenizer=tokenizer)))
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
        objectives=ObjectivesConfig(contrastive=0.0, denoise_text=1.0),
        data=replace(base.data, batch_size=4),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1),
        train=replace(settings, output=str(tmp_path / "two")),
    )
    path = tmp_path / "two.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    environment = os.environ | {"DEVICE_TARGET": "CPU", "RANK_SIZE": "2", "CONFIG": str(path), "PYTHON": sys.executable}
    launcher = ["bash", str(ROOT / "scripts" / "run_distributed_ascend.sh")]
    done = subprocess.run(launcher, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    expected = train_by_hand(replace(config, train=replace(settings, output=str(tmp_path / "by-hand"))))
    found = read_tensors(locate(tmp_path / "two") / MODEL)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
