"""What a run logs: read back by TensorBoard's own format, and a full disk told instead of waited for."""

import json
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from src.training.log import RunLog


def events(folder: Path) -> list[Event]:
    """The records of all event files: length, checksum, event, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 4, True)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2, "lr": 0.1})
    log.close()
    scalars = [
        (event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value
    ]
    assert scalars[::2] == [(1, "loss", 0.5), (2, "loss", 1.0), (3, "loss", 1.5)] and len(scalars) == 6

    for path in (tmp_path / "tensorboard").iterdir():
        path.unlink()  # the second run may start within the second that names its file
    log = RunLog(tmp_path, 2, 4, True)
    log.write(3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [3]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 4, False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("which", ["metrics", "events"])
def test_a_full_disk_is_told(tmp_path: Path, which: str) -> None:
    log = RunLog(tmp_path, 0, 4, True)
    full = open("/dev/full", "w" if which == "metrics" else "wb")  # noqa: SIM115 - closed by the log
    if which == "metrics":
        log.file = full
    else:
        log.events._py_recordio_writer._writer = full
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"):
        log.write(1, {"loss": 1.0})
    log.close()
