"""The share of time in which data are missing, on devices that are simulated step by step."""

from collections.abc import Iterator

import pytest

from src.training.pace import Pace


class Machine:
    """A loop that makes a batch, hands the step over, and after ten steps waits for the last.

    Args:
        ahead: whether the host goes on while the device works.
    """

    def __init__(self, ahead: bool) -> None:
        self.now, self.ahead, self.free, self.idle = 0.0, ahead, 0.0, 0.0

    def run(self, pace: Pace, first: int, batch: float, step: float) -> dict[str, float]:
        """Seconds of a batch and of a step; what is logged of ten of them. ``idle`` counts the device's empty time."""
        self.idle = 0.0
        for _ in range(10):
            with pace.waiting():
                self.now += batch
            self.idle += max(0.0, self.now - self.free)
            self.free = max(self.free, self.now) + step
            if not self.ahead:
                self.now = self.free
        with pace.looking():
            self.now = max(self.now, self.free)
        return pace.look(first + 10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Machine]]:
    machines: list[Machine] = []
    monkeypatch.setattr("time.perf_counter", lambda: machines[0].now)
    yield machines


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("batch", "step"), [(0.1, 0.4), (1.0, 0.4), (1.0, 1.0), (0.01, 2.0)])
def test_data_wait_is_never_too_high_and_exact_where_data_are_missing(
    clock: list[Machine], ahead: bool, batch: float, step: float
) -> None:
    machine = Machine(ahead)
    clock.append(machine)
    pace = Pace(8, 0)
    for first in (0, 10):  # the second time the device begins empty, too: the host has waited for it
        began = machine.now
        logged = machine.run(pace, first, batch, step)
        seconds = machine.now - began
        assert logged["samples_per_second"] == pytest.approx(80 / seconds, abs=0.01)
        share = machine.idle / seconds
        assert logged["data_wait"] <= share + 1e-3
        if not ahead or batch > step:
            assert logged["data_wait"] == pytest.approx(share, abs=1e-3)


def test_a_restart_forgets_what_was_before(clock: list[Machine]) -> None:
    machine = Machine(ahead=False)
    clock.append(machine)
    pace = Pace(8, 0)
    with pace.waiting():
        machine.now += 100
    pace.restart(0)
    assert machine.run(pace, 0, 0.25, 0.75) == {"samples_per_second": 8.0, "data_wait": 0.25}
