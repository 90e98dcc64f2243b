"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard events, a progress bar."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
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
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=1.0)

    def _keep_until(self, step: int) -> None:
        """Drops what a killed run logged behind the checkpoint from which it goes on."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if step else []
        write_text(self.path, "".join(line for line in lines if _step(line) <= step))

    def advance(self, loss: float) -> None:
        if self.active:
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        if self.active:
            self.file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.file.flush()
            for name, value in metrics.items():
                self.events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        if self.active:
            self.bar.write(text)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.file.close()
            self.events.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that the kill cut short
