"""How fast a run goes, and what it waits for."""

import contextlib
import time
from collections.abc import Iterator

TIMINGS = ("samples_per_second", "data_wait")  # logged numbers that an equal run does not repeat


class Pace:
    """The time between two looks at the device.

    Args:
        samples: of a step.
        step: where it begins.
    """

    def __init__(self, samples: int, step: int) -> None:
        self.samples = samples
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.began = step, time.perf_counter()
        self.waited = self.looked = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the loop waits for a batch."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the host waits for what the last step found."""
        began = time.perf_counter()
        yield
        self.looked = time.perf_counter() - began

    def look(self, step: int) -> dict[str, float]:
        """Since the last call, or since the last restart: samples a second and the share of time without a batch.

        The loop hands steps over and runs ahead, so that it may wait for batches while the device has work. The device
        had all of the last step before it when the loop began to look: a step takes no longer than looking did. What
        all of them take so is no time in which data were missing.
        """
        seconds, steps = time.perf_counter() - self.began, step - self.step
        missing = max(0.0, min(self.waited, seconds - steps * self.looked))
        self.restart(step)
        rate, share = steps * self.samples / seconds, missing / seconds
        return {"samples_per_second": round(rate, 2), "data_wait": round(share, 3)}
