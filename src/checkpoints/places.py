"""Which folder a checkpoint is: what users name runs, their checkpoints and the bundled ones by.

    runs/mine                       the latest checkpoint of a run
    runs/mine@best                  the one with the best metric
    runs/mine@step-00001000         that of a step; also runs/mine@1000
    runs/mine/checkpoints/step-…    the same by its path
    opt_demo, pretrained/opt_demo   the repository's own

A run whose latest checkpoint is damaged is taken at the one before, and stderr says so.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from src.checkpoints.files import EMA, MODEL, REPORT, CheckpointError
from src.checkpoints.manifest import check
from src.files import ROOT

CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"  # of a run folder: a folder, and two pointers in it
BUNDLED = "pretrained"  # folder of the repository
STEP = re.compile(r"(?:step-)?(\d+)(\.\d+)?")


def locate(path: str | Path, ema: bool = False, whole: bool = False) -> Path:
    """The checkpoint folder that ``path`` means; its files are those that its manifest lists.

    Args:
        ema: it must hold the average of its weights.
        whole: also the optimizer's state is read.

    Raises:
        CheckpointError: there is none, none that is undamaged, or none with an average.
    """
    folder = _find(Path(path), lambda place: check(place, ema, whole))
    if ema and not (folder / EMA).is_file():
        raise CheckpointError(f"--ema: {folder} has no {EMA}, which runs with train.ema_decay write: leave out --ema")
    return folder


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a checkpoint, in whatever state."""
    return (run / CHECKPOINTS / LATEST).exists() or any(saved(run))


def saved(run: Path) -> list[Path]:
    """The checkpoints of a run."""
    return [place for place in (run / CHECKPOINTS).glob("step-*") if place.is_dir()]


def pointed(pointer: Path) -> Path | None:
    """The folder that ``latest`` or ``best`` names, if there is such a pointer."""
    if not pointer.is_file():
        return None
    return pointer.parent / pointer.read_text(encoding="utf-8", errors="replace").strip()


def latest_before(run: Path, step: int) -> Path:
    """The latest checkpoint of a run before a step, or the one before where that is damaged.

    Raises:
        CheckpointError: there is none, or none that is undamaged.
    """
    steps = {place: STEP.fullmatch(place.name) for place in _newest_first(run)}
    places = [place for place, found in steps.items() if found and int(found[1]) < step]
    if not places:
        raise CheckpointError(f"{run} has no checkpoint before step {step}: name one by --checkpoint")
    return _first_whole(places, lambda place: check(place, ema=False, whole=True))


def results_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go: its run folder, or for a bundled one, which is left as it is, under runs/."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else Path("runs") / checkpoint.name


def weights_suffix(checkpoint: Path, ema: bool) -> str:
    """What tells results of other weights apart: ``-ema`` of an average, and ``@step-…``, as a user would name it, of a
    checkpoint that is not its run's latest one."""
    beside = checkpoint.parent.name == CHECKPOINTS and pointed(checkpoint.parent / LATEST) not in (None, checkpoint)
    return ("-ema" if ema else "") + (f"@{checkpoint.name}" if beside else "")


def _find(path: Path, check: Callable[[Path], None]) -> Path:
    if (path / MODEL).is_file():
        check(path)
        return path
    if (path / CHECKPOINTS).is_dir():
        return _latest(path, check)
    run, at, which = str(path).rpartition("@")
    if at and not path.exists() and (Path(run) / CHECKPOINTS).is_dir():
        return _latest(Path(run), check) if which == LATEST else _chosen(Path(run), which, check)
    bundled = ROOT / BUNDLED / path.name
    if str(path.parent) in (".", BUNDLED) and not path.exists() and (bundled / MODEL).is_file():
        return bundled
    if (path / REPORT).is_file():
        raise CheckpointError(f"{path} holds exported graphs: name the run or checkpoint folder they were made from")
    raise CheckpointError(f"no checkpoint in {path}: expected {MODEL} or a run folder with {CHECKPOINTS}/{LATEST}")


def _latest(run: Path, check: Callable[[Path], None]) -> Path:
    """The latest checkpoint of a run, or the one before where that is damaged."""
    if places := _newest_first(run):
        return _first_whole(places, check)
    raise CheckpointError(f"no checkpoint in {run}: nothing was saved yet")


def _first_whole(places: Sequence[Path], check: Callable[[Path], None]) -> Path:
    """The first checkpoint that is not damaged; stderr names those before it."""
    problems = []
    for place in places:
        try:
            _require(place, check)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            print(f"note: {problem}; {place.name} is used instead", file=sys.stderr, flush=True)
        return place
    also = f" (and so are the {len(problems) - 1} before it)" if len(problems) > 1 else ""
    raise CheckpointError(f"{problems[0]}{also}")


def _newest_first(run: Path) -> list[Path]:
    """The checkpoints of a run, but those of later steps than the latest, which another run left behind."""
    latest, places = pointed(run / CHECKPOINTS / LATEST), sorted(saved(run), reverse=True)
    if latest is None or not STEP.fullmatch(latest.name):  # the pointer itself is lost or damaged
        return places
    return [latest, *(place for place in places if place.name < latest.name)]


def _chosen(run: Path, which: str, check: Callable[[Path], None]) -> Path:
    """The checkpoint of a run that ``best`` or a step names."""
    place, step = pointed(run / CHECKPOINTS / BEST) if which == BEST else None, STEP.fullmatch(which)
    if step:
        place = run / CHECKPOINTS / f"step-{int(step[1]):08d}{step[2] or ''}"
    if place is None or not place.is_dir():
        known = ", ".join([LATEST, *([BEST] if (run / CHECKPOINTS / BEST).is_file() else []), *_names(run)])
        raise CheckpointError(f"{run} has no checkpoint {which}: it has {known}")
    _require(place, check)
    return place


def _require(place: Path, check: Callable[[Path], None]) -> None:
    if not place.is_dir():
        raise CheckpointError(f"{place.parent / LATEST} names {place.name}, which is not there")
    check(place)
    if not (place / MODEL).is_file():
        raise CheckpointError(f"{place / MODEL} is missing")


def _names(run: Path) -> list[str]:
    return sorted(place.name for place in saved(run))
