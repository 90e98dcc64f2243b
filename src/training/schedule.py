"""Learning-rate schedule: linear warm-up, then a cosine."""

import numpy as np

from src.config import OptimizerConfig


def learning_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The rate of every step.

    With ``warmup`` = config.warmup(steps): lr(s) = lr·(s + 1) / warmup up to the peak at s = warmup − 1, which is
    used once, then min_lr + (lr − min_lr)·(1 + cos π·x) / 2 with x going from 0 there to 1 in the last step.

    Args:
        config: lr, min_lr, warmup_steps.
        steps: length of the run.

    Returns:
        (steps,) float32.
    """
    step = np.arange(steps, dtype=np.float64)
    length = config.warmup(steps)
    warmup = config.lr * (step + 1) / max(1, length)
    peak = max(0, length - 1)
    progress = (step - peak) / max(1, steps - 1 - peak)
    cosine = config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + np.cos(np.pi * progress))
    return np.where(step < peak, warmup, cosine).astype(np.float32)
