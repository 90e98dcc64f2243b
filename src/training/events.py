"""TensorBoard's record of a run."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.data.image import encode_png
from src.training.board import Shown

MOST_EVENTS = 256 << 20  # bytes of a run's events at which no more images are added to them


class Events:
    """Event files in a folder. Every method raises OSError where the disk does not take what is written.

    Args:
        folder: made if it is missing.
        first_step: TensorBoard drops what an interrupted run recorded after it.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Here: it imports PyTorch where there is one, a second that no other command needs to wait.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        # Not SummaryWriter: its thread dies of a full disk, and the run then waits for it for ever.
        self._writer, self._make = event_file_writer.EventsWriter, summary
        self._event, self._summary, self._session = event_pb2.Event, summary_pb2.Summary, event_pb2.SessionLog
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._open: Any = self._writer(str(folder / "events"))
        if first_step:
            start = self._session(status=self._session.START)
            self._open.write_event(self._event(step=first_step + 1, wall_time=time.time(), session_log=start))

    @property
    def full(self) -> bool:
        """Whether the run has filled its part of the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("*.tfevents.*")) >= MOST_EVENTS

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        self._write(step, (self._make.scalar(name, value) for name, value in values.items()))

    def shown(self, step: int, shown: Shown) -> None:
        """Images and texts; embeddings have files of their own (:func:`src.training.board.write_points`)."""
        self._write(step, self._summaries(shown))

    def _summaries(self, shown: Shown) -> Iterable[Any]:
        for tag, pixels in shown.images.items():
            height, width = pixels.shape[:2]
            encoded = encode_png(pixels)
            image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
            yield self._summary(value=[self._summary.Value(tag=tag, image=image)])
        for tag, text in shown.texts.items():
            yield self._make.text(tag, text)

    def _write(self, step: int, summaries: Iterable[Any]) -> None:
        try:
            if self._open is None:
                self._open = self._writer(str(self.folder / "events"))
            for summary in summaries:
                self._open.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
            self._open.flush()
        except OSError:
            self.close()  # the file may end within a record: the next one is another
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._open is not None:
                self._open.close()
        self._open = None
