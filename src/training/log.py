"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard events, a progress bar. None of them ends it."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from src.cli import CarelessStream
from src.data.decoding import brief
from src.files import json_line, write_bytes
from src.report.diagnosis import Finding, Watch

UNREADABLE = float("inf")  # the step of a line that is none


class RunLog:
    """Writes the metrics of a run; on ranks other than 0 it is silent.

    Args:
        folder: run folder.
        first_step, steps: where the run begins and ends; later records of an interrupted run are dropped.
        active: False on every rank but the first.
        watch: finds what goes wrong in what is logged, which is said; it also reads what the run logged before.
    """

    def __init__(self, folder: Path, first_step: int, steps: int, active: bool, watch: Watch | None = None) -> None:
        self.active, self.watch = active, watch
        if not active:
            return
        self.path = folder / "metrics.jsonl"
        self._keep_until(first_step)
        self.waiting: list[bytes] = []  # lines that are not written yet
        self.failing = False
        (folder / "tensorboard").mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and the run then waits for it for ever.
        self.events: EventsWriter | None = EventsWriter(str(folder / "tensorboard" / "events"))
        if first_step:  # TensorBoard drops what an interrupted run logged from here on
            start = SessionLog(status=SessionLog.START)
            self.events.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=start))
        # the first step compiles its graphs, about a minute: the bar says so, and counts the rate from then on
        shown = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "file": CarelessStream(sys.stderr)}
        self.bar = tqdm(total=steps, initial=first_step, **shown)
        self.bar.set_description("compiling")
        self.compiling = True

    def _keep_until(self, step: int) -> None:
        """Drops what a killed run logged behind the checkpoint from which it goes on; what cannot be read is told."""
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True) if step else []
        steps = list(map(_step, lines))
        kept = [line for line, at in zip(lines, steps, strict=True) if at <= step]
        write_bytes(self.path, b"".join(kept))
        for line in kept:
            self._find(json.loads(line))  # it was said when it was logged
        damaged = steps[:-1].count(UNREADABLE)  # the kill may have cut the last one short
        if damaged:
            print(f"note: {self.path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)

    def advance(self) -> None:
        if self.active:
            if self.compiling:
                self.compiling = False
                self.bar.set_description_str("training", refresh=False)
                self.bar.initial = self.bar.n + 1
                self.bar.unpause()  # as if it had begun now
            self.bar.update()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs; a disk that does not take it is told once, and costs the run nothing but TensorBoard's record."""
        if not self.active:
            return
        if "loss" in metrics:
            self.bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
        line = {"step": step, **metrics}
        self.waiting.append(json_line(line) + b"\n")
        self._write_out(step, metrics)
        for found in self._find(line):
            self.say(f"step {found.step}: warning: {found.name}: {found.figure}. {found.advice}")

    def _find(self, line: dict[str, Any]) -> list[Finding]:
        """What goes wrong by this line; a mistake in looking for it costs a run its warnings alone."""
        if self.watch is None:
            return []
        try:
            return self.watch.add(line)
        except Exception as error:
            print(f"note: no more warnings: {brief(error)}", file=sys.stderr, flush=True)
            self.watch = None
            return []

    def _write_out(self, step: int, metrics: dict[str, Any]) -> None:
        try:
            self._write_lines()
            self._write_events(step, metrics)
        except OSError as error:
            if not self.failing:
                self.say(f"step {step}: cannot log in {self.path.parent} ({brief(error)}): training goes on")
            self.failing = True
            return
        if self.failing:
            self.say(f"step {step}: {self.path} is whole again")
        self.failing = False

    def _write_lines(self) -> None:
        """Appends what waits. Where not all of it finds room nothing is left of it, so that no line is cut."""
        # opened for each line: a mount that went and came back has another file
        with open(self.path, "ab", buffering=0) as file:
            end, data = file.seek(0, os.SEEK_END), b"".join(self.waiting)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise
        self.waiting.clear()

    def _write_events(self, step: int, metrics: dict[str, Any]) -> None:
        try:
            if self.events is None:
                self.events: EventsWriter | None = EventsWriter(str(self.path.parent / "tensorboard" / "events"))
            for name, value in metrics.items():
                self.events.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
            self.events.flush()
        except OSError:
            self._close_events()  # the file may end within a record: the next one is another
            raise

    def _close_events(self) -> None:
        with contextlib.suppress(OSError):
            if self.events is not None:
                self.events.close()
        self.events = None

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text, file=CarelessStream(sys.stdout))

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self._close_events()


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return UNREADABLE
