"""What is read of a run: its configuration, what it logged, its evaluations, its data and its latest checkpoint.

    RUN/config.yaml, metrics.jsonl          written by training
    RUN/checkpoints/                        its latest state.json and manifest.json
    RUN/eval-SPLIT/metrics.json             written by eval.py, beside it examples.json and figures/
    RUN/../evaluation/RUN/metrics.json      the same, where the demo has it

Whatever is missing or damaged is a line of ``problems``; the rest is read all the same. MindSpore is not loaded.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from src.checkpoints.renames import rename
from src.config import Config, ConfigError, load_config, to_yaml
from src.data.decoding import brief
from src.data.errors import DataError
from src.data.store import read_info
from src.errors import UserError
from src.report.log_lines import read_lines
from src.report.measures import Measure, measures
from src.report.page import printable

STEP = re.compile(r"step-(\d+)(?:\.\d+)?$")  # of a checkpoint's folder
CONFIG, LOG, METRICS, EXAMPLES = "config.yaml", "metrics.jsonl", "metrics.json", "examples.json"


class ReportError(UserError):
    """A folder that holds nothing to report."""


@dataclass(frozen=True)
class Evaluation:
    """What eval.py wrote into a folder."""

    folder: Path
    metrics: dict[str, Any]
    rows: list[Measure]  # the numbers among them
    examples: list[dict[str, Any]]  # the sheets of examples.json
    place: str = ""  # the folder's name, where the run has another evaluation of the same split and weights

    @property
    def measured(self) -> str:
        """The split, and which weights were measured if not the last ones."""
        averaged = ", average of the weights" if str(self.metrics.get("weights", "")).startswith("ema") else ""
        return f"{self.metrics.get('split', '?')}{averaged}"

    @property
    def label(self) -> str:
        """What was measured, and the place where only that tells it."""
        return f"{self.measured}{f' ({self.place})' if self.place else ''}"

    @property
    def step(self) -> int | None:
        """Of the checkpoint, by the name of its folder or else that of the results (``eval-SPLIT@step-…``)."""
        found = STEP.search(str(self.metrics.get("checkpoint", ""))) or STEP.search(self.folder.name)
        return int(found[1]) if found else None

    @property
    def data(self) -> str:
        """The digest of the split's samples; empty where eval.py named none."""
        return str(self.section("data").get("sha256", ""))

    def section(self, name: str) -> dict[str, Any]:
        """A part of the metrics; empty where there is none."""
        found = self.metrics.get(name)
        return found if isinstance(found, dict) else {}


@dataclass
class Run:
    """A run folder as far as it can be read.

    Attributes:
        name: by which it is told from the other runs of the report.
        settings: the resolved configuration by dotted key, in its order.
        config: the same, checked; None if it cannot be used.
        lines: what metrics.jsonl holds, in its order.
        data: dataset.json of the training data; empty if it is not there.
        state, manifest: of the latest checkpoint; empty without one.
        problems: what is missing or damaged, one line each.
    """

    name: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    config: Config | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @cached_property
    def series(self) -> dict[str, dict[int, float | None]]:
        """By metric, by step: the value, None where it was not finite. Of a repeated step the later line counts."""
        found: dict[str, dict[int, float | None]] = {}
        for line in self.lines:
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(key, {})[line["step"]] = value if math.isfinite(value) else None
        return {key: dict(sorted(values.items())) for key, values in found.items()}

    @property
    def last_step(self) -> int:
        """Of the log."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def trained_steps(self) -> int:
        """As the log, the latest checkpoint or, where neither is there, the configuration says."""
        saved = self.state.get("step")
        return max(self.last_step, saved if isinstance(saved, int) else 0) or int(self.settings.get("train.steps", 0))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that folders hold: each is a run, a folder of runs, or what eval.py wrote.

    Raises:
        ReportError: one is no folder, or holds none of these.
    """
    folders = [folder for path in paths for folder in _expand(path)]
    unique = list(dict.fromkeys(folders))
    return [_read(folder, name) for folder, name in zip(unique, names(unique), strict=True)]


def names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=0)):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return list(map(printable, found))
    return [printable(str(folder)) for folder in folders]


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        inner = isinstance(value, Mapping)
        found.update(flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value})
    return found


def default_settings() -> dict[str, Any]:
    """The configuration that a run without any setting has, by dotted key."""
    return flatten(yaml.safe_load(to_yaml(Config())))


def _expand(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ReportError(f"{path}: no such folder: name a run (train.output) or what eval.py wrote (--output)")
    if any((path / name).is_file() for name in (CONFIG, LOG, METRICS)):
        return [path]
    inside = sorted((place / LOG for place in path.iterdir() if (place / LOG).is_file()), key=_written)
    if not inside:
        raise ReportError(f"{path} holds no run: expected {CONFIG} with {LOG}, or {METRICS} of eval.py")
    return [log.parent for log in inside]


def _written(path: Path) -> tuple[int, str]:
    """Sorts logs in the order in which the runs ended."""
    return path.stat().st_mtime_ns, str(path)


def _read(folder: Path, name: str) -> Run:
    run = Run(name, folder)
    _read_config(run)
    _read_log(run)
    for place in _evaluation_folders(folder):
        _read_evaluation(run, place)
    counts = Counter(found.measured for found in run.evaluations)
    run.evaluations = [
        replace(found, place=found.folder.name) if counts[found.measured] > 1 else found for found in run.evaluations
    ]
    run.state, run.manifest = (_read_checkpoint(folder, file) for file in ("state.json", "manifest.json"))
    if not run.evaluations:
        run.problems.append("not evaluated: eval.py has written no metrics.json for it")
    _read_data(run)
    return run


def _read_config(run: Run) -> None:
    path = run.folder / CONFIG
    if not path.is_file():
        run.problems.append(f"no {CONFIG}: how it was configured is not known")
        return
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        run.problems.append(f"{CONFIG} cannot be read ({brief(error)})")
        return
    if not isinstance(found, dict):
        run.problems.append(f"{CONFIG} holds no settings")
        return
    run.settings = flatten(found)
    try:
        run.config = load_config(path, (), rename)
        run.settings = flatten(yaml.safe_load(to_yaml(run.config)))
    except ConfigError as error:
        run.problems.append(f"{CONFIG} is shown as it stands, this version cannot use it: {error}")


def _read_log(run: Run) -> None:
    path = run.folder / LOG
    if not path.is_file():
        if (run.folder / CONFIG).is_file():
            run.problems.append(f"no {LOG}: nothing was logged yet")
        return
    lines, damaged = read_lines(path.read_bytes())
    run.lines = [line.content for line in lines]
    if damaged:
        run.problems.append(f"{LOG}: {damaged} damaged lines are left out")
    if not run.lines:
        run.problems.append(f"{LOG} holds nothing yet: the first line comes after train.log_every steps")


def _evaluation_folders(folder: Path) -> list[Path]:
    places = [folder, *sorted(folder.glob("eval-*")), folder.parent / "evaluation" / folder.name]
    return [place for place in places if (place / METRICS).is_file()]


def _read_evaluation(run: Run, folder: Path) -> None:
    metrics, examples = (_read_object(run, folder / name) for name in (METRICS, EXAMPLES))
    if not metrics:
        return
    try:
        rows = measures(metrics)
        if not all(isinstance(row.value, int | float) and isinstance(row.chance, int | float | None) for row in rows):
            raise TypeError("a metric that is no number")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        rows = []
        run.problems.append(f"{folder / METRICS} has not what this version writes ({error!r}): it is left out")
    sheets = examples.get("sheets", [])
    run.evaluations.append(Evaluation(folder, metrics, rows, sheets if isinstance(sheets, list) else []))


def _read_object(run: Run, path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file, or none that can be read, which is noted."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"{path} cannot be read ({brief(error)}): it is left out")
        return {}


def _read_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the latest checkpoint; empty where there is none that can be read."""
    checkpoints = folder / "checkpoints"
    try:
        latest = (checkpoints / "latest").read_text(encoding="utf-8").strip()
        found = json.loads((checkpoints / latest / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_data(run: Run) -> None:
    """dataset.json of a single source; the configuration names it from where the run was started."""
    path = run.settings.get("data.path")
    if not path or run.settings.get("data.sources"):
        return
    try:
        run.data = read_info(_started_in(run) / path)
    except (DataError, OSError) as error:
        run.problems.append(f"what the training data holds is not known: {error}")


def _started_in(run: Run) -> Path:
    """The folder that a run was started in: its own less train.output, if that is relative and ends so."""
    output, own = Path(str(run.settings.get("train.output", ""))), run.folder.resolve()
    length = len(output.parts)
    if length and not output.is_absolute() and own.parts[-length:] == output.parts:
        return own.parents[length - 1]
    return Path()
