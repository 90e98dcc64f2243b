"""A training step in PyTorch, and as a program one row of :mod:`benchmarks.device_step`; MindSpore is not loaded."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import device_row, torch_network, torch_twin
from benchmarks.device_row import Job, Prepared
from src.config import Config
from src.data.tokenizer import Tokenizer
from src.objectives.table import needed_fields
from src.training.schedule import learning_rates

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def torch_step(
    model: nn.Module, config: Config, loss_of: Callable[[], Tensor], scaler: torch.amp.GradScaler | None = None
) -> Callable[[], float]:
    """Loss, gradients, clipping and fused AdamW at the rates of the configuration.

    Args:
        scaler: of the loss, for gradients in fp16.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)  # then it changes nothing
    matrices, plain = [], []
    for name, parameter in model.named_parameters():
        vector = "positions" in name or sum(size > 1 for size in parameter.shape) < 2
        (plain if vector else matrices).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": plain, "weight_decay": 0.0}],
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    rates = learning_rates(config.optimizer, config.train.steps)
    done = 0

    def step() -> float:
        nonlocal done
        for group in optimizer.param_groups:
            group["lr"] = float(rates[min(done, len(rates) - 1)])
        done += 1
        optimizer.zero_grad()
        loss = loss_of()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def load_twin(job: Job, config: Config) -> torch_network.OPT:
    """The network on the row's device with the weights that all rows start from."""
    with torch.device("meta"):  # weights that are overwritten need no random numbers
        twin = torch_network.OPT(config.model, Tokenizer(config.model.text.vocab).size)
    with np.load(job.weights) as weights:
        twin.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files}, assign=True)
    return twin.to(job.torch_device)


def prepare(job: Job) -> Prepared:
    """The step that copies its batch from pinned memory each time, as a training does."""
    config, device = job.config(), job.torch_device
    on_gpu = device == "cuda"
    if job.tf32:
        torch.set_float32_matmul_precision("high")
    twin = load_twin(job, config)
    objectives = torch_twin.Objectives(twin, config)
    compute = torch.compile(objectives, dynamic=False) if job.compiled else objectives
    with np.load(job.batch) as saved:
        batch = {name: torch.from_numpy(saved[name]) for name in needed_fields(config.objectives)}
    if on_gpu:
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}

    def loss_of() -> Tensor:
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(device, TYPES.get(job.precision), enabled=job.precision in TYPES):
            return compute(tensors)

    scaler = torch.amp.GradScaler(device, enabled=job.precision == "fp16")
    step = torch_step(twin, config, loss_of, scaler)

    def run() -> float:
        loss = step()
        if on_gpu:
            torch.cuda.synchronize()
        return loss

    return Prepared(run, torch.cuda.max_memory_allocated if on_gpu else lambda: 0)


if __name__ == "__main__":
    device_row.main(prepare)
