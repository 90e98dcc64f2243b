"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard events, a progress bar."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from src.files import write_text


class RunLog:
    """Writes the metrics of a run; on ranks other than 0 it is silent.

    Args:
        folder: run folder.
        first_step, steps: where the run begins and ends; later records of an interrupted run are dropped.
        active: False on every rank but the first.
    """

    def __init__(self, folder: Path, first_step: int, steps: int, active: bool) -> None:
        self.active = active
        if not active:
            return
        self.path = folder / "metrics.jsonl"
        self._keep_until(first_step)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and the run then waits for it for ever.
        self.events = EventsWriter(str(folder / "tensorboard" / "events"))
        if first_step:  # TensorBoard drops what an interrupted run logged from here on
            start = SessionLog(status=SessionLog.START)
            self.events.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=start))
        # the first step compiles its graphs, about a minute: the bar says so, and counts the rate from then on
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=1.0)
        self.bar.set_description("compiling")
        self.compiling = True

    def _keep_until(self, step: int) -> None:
        """Drops what a killed run logged behind the checkpoint from which it goes on."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if step else []
        write_text(self.path, "".join(line for line in lines if _step(line) <= step))

    def advance(self) -> None:
        if self.active:
            if self.compiling:
                self.compiling = False
                self.bar.set_description_str("training", refresh=False)
                self.bar.initial = self.bar.n + 1
                self.bar.unpause()  # as if it had begun now
            self.bar.update()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        if not self.active:
            return
        if "loss" in metrics:
            self.bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
        try:
            self.file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.file.flush()
            for name, value in metrics.items():
                self.events.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
            self.events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path.parent)) from None

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            for file in (self.file, self.events):
                with contextlib.suppress(OSError):  # only what write could not flush, and told
                    file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that the kill cut short
