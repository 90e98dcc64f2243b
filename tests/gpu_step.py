"""Takes one training step of tasks on the GPU backend, for tests/test_gpu_stand_in.py.

    python -m tests.gpu_step PRECISION TASK[:SETTING,...] ...

The tasks' demo configurations with one layer each; the batches are zeros. Prints a line for each task.
"""

import os
import sys
from types import SimpleNamespace

# an operator without a kernel would else run on the CPU, with a copy there and back
os.environ["MS_DISABLE_KERNEL_BACKOFF"] = "1"

import numpy as np
from mindspore import nn

from src.config import Config, load_config
from src.data.schema import answer_fields, batch_fields
from src.data.tokenizer import Tokenizer
from src.models.build import build_model
from src.objectives.peers import ALONE
from src.objectives.self_critical import SelfCriticalObjectives
from src.runtime import setup
from src.tasks import registry
from src.training.layer_rates import unfrozen
from src.training.muon import build_optimizer
from src.training.optimizer import trained_parameters
from src.training.step import INITIAL_LOSS_SCALE, TrainStep

BATCH = 10
PARTS = ("text", "image", "audio", "cross", "text_decoder", "image_decoder", "image_tokenizer")
SMALL = ("runtime.device=GPU", f"data.batch_size={BATCH}", *(f"model.{part}.layers=1" for part in PARTS))


def objectives_of(model: nn.Cell, config: Config) -> nn.Cell:
    if config.task != "self_critical":
        return registry.get(config.task).build(model, config, ALONE)
    sampler = SimpleNamespace(tokenizer=Tokenizer(config.model.text.vocab))  # no data, and nothing to sample
    objectives = SelfCriticalObjectives(model, config, sampler, ALONE)
    objectives.before_step = None
    return objectives


def batch_of(config: Config) -> dict[str, np.ndarray]:
    fields = batch_fields(config.model, BATCH, config.objectives.masking.ratio)
    if config.model.answers:
        fields |= answer_fields(config.model)
    batch = {name: np.zeros((BATCH, *field.shape), field.dtype) for name, field in fields.items()}
    samples = config.objectives.self_critical.samples
    batch["sampled_ids"] = np.zeros((BATCH, samples, config.model.text.max_len), np.int32)
    batch |= {name: np.zeros((BATCH, samples), np.float32) for name in ("advantage", "reward")}
    batch["rewarded"] = np.zeros(BATCH, np.float32)
    if config.task == "image_tokenizer":
        batch["image"] = np.zeros((BATCH, *2 * [config.model.image_tokenizer.size], 3), np.uint8)
    return batch


def take_step(task: str, precision: str, settings: list[str]) -> None:
    config = load_config(f"config/{task}/demo.yaml", [*SMALL, f"runtime.precision={precision}", *settings])
    setup(config.runtime, seed=1)
    model = build_model(config)
    objectives = objectives_of(model, config)
    parameters = unfrozen(trained_parameters(model, objectives), config.optimizer.freeze)
    optimizer = build_optimizer(parameters, config.optimizer, np.full(1, 1e-3, np.float32))
    step = TrainStep(objectives, optimizer, 1.0, INITIAL_LOSS_SCALE if precision == "fp16" else None)
    step(batch_of(config))
    assert step.report.asnumpy().shape[0] > 0  # waits for it


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, _, given = argument.partition(":")
        try:
            take_step(name, sys.argv[1], given.split(",") if given else [])
        except (RuntimeError, TypeError, ValueError) as error:  # MindSpore's, of an operator without a kernel
            lines = [line for line in str(error).splitlines() if line.strip("- ")]
            print(f"{argument}: {type(error).__name__}: {' '.join(lines[:3])[:400]}", flush=True)
        else:
            print(f"{argument}: ok", flush=True)
