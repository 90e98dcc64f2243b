"""The lines of metrics.jsonl: what is logged of a step and of an evaluation."""

from collections.abc import Mapping

from src.training.held_out import Measured
from src.training.step import StepResult


def step_line(
    result: StepResult, logit_scale: float | None, timings: Mapping[str, float], bad_records: int
) -> dict[str, float]:
    """Args: timings: those of :class:`src.training.pace.Pace`."""
    losses = {"loss" if name == "total" else f"loss/{name}": value for name, value in result.losses.items()}
    metrics = {f"batch/{name}": value for name, value in result.metrics.items()}
    more: dict[str, float] = {} if result.skipped else {"grad_norm": result.norm}  # infinite where a step overflowed
    if logit_scale is not None:
        more["logit_scale"] = logit_scale
    if result.loss_scale is not None:
        more["loss_scale"] = result.loss_scale
    if result.bad_steps:
        more["bad_steps"] = result.bad_steps
    if bad_records:
        more["bad_records"] = bad_records
    return losses | metrics | {"lr": result.rate, **more, **timings}


def held_out_line(measured: Measured, best_metric: float | None) -> dict[str, float]:
    """Args: best_metric: by what the checkpoint is compared with others."""
    line = {f"eval/{name}": value for name, value in measured.metrics.items()} | measured.beside
    return line if best_metric is None else line | {"best_metric": best_metric}
