"""A training step in MindSpore, and as a program one row of :mod:`benchmarks.device_step`; PyTorch is not loaded."""

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import nn

from benchmarks import device_row
from benchmarks.batch import make_batch
from benchmarks.device_row import Job, Prepared
from src import runtime
from src.config import Config
from src.models.build import build_model
from src.objectives.objectives import Objectives
from src.training.accumulation import part_size
from src.training.average import WeightAverage
from src.training.muon import build_optimizer
from src.training.optimizer import trained_parameters
from src.training.schedule import learning_rates
from src.training.step import INITIAL_LOSS_SCALE, TrainStep


def mindspore_step(model: nn.Cell, config: Config) -> TrainStep:
    """Loss, gradients, clipping and AdamW as a training has them, in fp16 with its loss scale."""
    return training_step(model, replace(config, optimizer=replace(config.optimizer, name="adamw")))


def training_step(model: nn.Cell, config: Config) -> TrainStep:
    """The step of a configuration, with its optimiser and its parts of a batch."""
    objectives = Objectives(model, config.objectives, config.data.batch_size)
    part = Objectives(model, config.objectives, part_size(config)) if config.train.accumulate > 1 else None
    rates = learning_rates(config.optimizer, config.train.steps)
    optimizer = build_optimizer(trained_parameters(model, objectives), config.optimizer, rates)
    scale = INITIAL_LOSS_SCALE if config.runtime.precision == "fp16" else None
    average = WeightAverage(optimizer, config.train.ema_decay) if config.train.ema_decay else None
    return TrainStep(objectives, optimizer, config.optimizer.clip_norm, scale, part=part, average=average)


def save_start(job: Job) -> None:
    """Writes the weights and the batch from which every row of a size starts."""
    config = job.config()
    runtime.setup(config.runtime, config.seed)
    model = build_model(config)
    np.savez(job.weights, **{name: value.asnumpy() for name, value in model.parameters_and_names()})
    np.savez(job.batch, **make_batch(config))


def prepare(job: Job) -> Prepared:
    """The step from the weights of the configuration's seed, which are those that :func:`save_start` wrote."""
    config = job.config(f"runtime.device={job.device}", f"runtime.precision={job.precision}")
    runtime.setup(config.runtime, config.seed)
    if job.tf32:
        ms.device_context.gpu.op_precision.matmul_allow_tf32(True)
    step = mindspore_step(build_model(config), config)
    batch = dict(np.load(job.batch))

    def run() -> float:
        step(batch)
        loss = step.result().losses["total"]
        if job.device != "CPU":
            ms.runtime.synchronize()
        return loss

    return Prepared(run, ms.runtime.max_memory_allocated)


if __name__ == "__main__":
    device_row.main(prepare, save_start)
