"""Learning-rate schedule: linear warm-up, then a cosine."""

import numpy as np

from src.config import OptimizerConfig


def learning_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    """The rate of every step.

    lr(s) = lr·(s + 1) / warmup for s < warmup, then min_lr + (lr − min_lr)·(1 + cos π·x) / 2 with x going from 0 to 1.

    Args:
        config: lr, min_lr, warmup_steps.
        steps: length of the run.

    Returns:
        (steps,) float32.
    """
    step = np.arange(steps, dtype=np.float64)
    warmup = config.lr * (step + 1) / max(1, config.warmup_steps)
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + np.cos(np.pi * progress))
    return np.where(step < config.warmup_steps, warmup, cosine).astype(np.float32)
