"""TensorBoard's record of a run."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tensorboardX.summary import text as text_summary

from src.data.image import encode_png
from src.training.board import Shown


class Events:
    """Event files in a folder. Every method raises OSError where the disk does not take what is written.

    Args:
        folder: made if it is missing.
        first_step: TensorBoard drops what an interrupted run in this folder recorded after it.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        goes_on = any(folder.glob("*.tfevents.*"))
        self._writer: EventsWriter | None = self._open()
        if goes_on or first_step:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first_step + 1, wall_time=time.time(), session_log=start))

    def _open(self) -> EventsWriter:
        # Not SummaryWriter: its thread dies of a full disk, and the run then waits for it for ever.
        return EventsWriter(str(self.folder / "events"))

    @property
    def size(self) -> int:
        """Bytes of all event files of the run."""
        return sum(path.stat().st_size for path in self.folder.glob("*.tfevents.*"))

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._write(step, (scalar(name, value) for name, value in values.items()))

    def shown(self, step: int, shown: Shown) -> None:
        """Images and texts; embeddings have files of their own (:func:`src.training.board.write_points`)."""
        self._write(step, _summaries(shown))

    def _write(self, step: int, summaries: Iterable[Summary]) -> None:
        try:
            if self._writer is None:
                self._writer = self._open()
            for summary in summaries:
                self._writer.write_event(Event(step=step, wall_time=time.time(), summary=summary))
            self._writer.flush()
        except OSError:
            self.close()  # the file may end within a record: the next one is another
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        self._writer = None


def _summaries(shown: Shown) -> Iterable[Summary]:
    for tag, pixels in shown.images.items():
        height, width = pixels.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_png(pixels))
        yield Summary(value=[Summary.Value(tag=tag, image=image)])
    for tag, text in shown.texts.items():
        yield text_summary(tag, text)
