"""Damages one file at a time and runs the command that meets it: it must be named in one line, or do no harm.

    python -m benchmarks.corrupt --times 200
    python -m benchmarks.corrupt --times 50 --only checkpoint

A small world is made of everything that a user has: images, sounds and a manifest, a dataset, a run with checkpoints,
an exported checkpoint, an index, a configuration. A trial changes one random byte of a random file, cuts it at a random
place, or deletes it, and runs a command that reads it. What it says and what it writes are compared with those of the
undamaged world:

    named      the command says which file is wrong (exit code 2, a note, or a line of rejected.jsonl)
    harmless   its results are the same
    valid      its results differ, for the file is another valid one: nothing tells a changed pixel from a taken one.
               Only what the user wrote himself may be that; what OPT writes has checksums
    silent     they differ, and nothing is said
    traceback, hangs: what must not be
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.kill import CHARACTERS, SIDE, small_model
from src import cli
from src.config import (
    Config,
    DataConfig,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    WeightsConfig,
    to_yaml,
)
from src.report.tables import table

OUTCOMES = ("named", "harmless", "valid", "silent", "traceback", "hangs")
FAULTS = ("silent", "traceback", "hangs")
HOW = ("byte", "cut", "delete")
LIMIT = 300.0  # seconds that a command may take
RECORDS = 24
TRAIN = ("train", "--config", "config.yaml", "train.output=fresh", "train.steps=6")
RESUME = ("train", "--config", "config.yaml", "--resume", "train.steps=8")
QUERY = ("infer", "--query", "红猫", "--output", "answers")
PREPARE = ("tools.prepare_data", "manifest", "--config", "config.yaml", "--input", "source/manifest.jsonl")


@dataclass(frozen=True)
class Target:
    """Files of one kind, and the command that reads them.

    Args:
        files: glob below the world's folder.
        command: module, and its arguments.
        results: files that it writes, globs.
        own: whether the user wrote the files, which then have no checksums.
    """

    files: tuple[str, ...]
    command: tuple[str, ...]
    results: tuple[str, ...]
    own: bool = False


LOSSES = ("fresh/metrics.jsonl",)
TARGETS = {
    "image": Target(("source/*.png", "source/*.jpg"), (*PREPARE, "--output", "again"), ("again/index-*",), own=True),
    "sound": Target(("source/*.wav",), (*PREPARE, "--output", "again"), ("again/checksums-*",), own=True),
    "manifest": Target(("source/manifest.jsonl",), (*PREPARE, "--output", "again"), ("again/checksums-*",), own=True),
    "configuration": Target(("config.yaml", "vocab.txt"), TRAIN, LOSSES, own=True),
    "shard": Target(("data/*.mindrecord", "data/*.mindrecord.db"), TRAIN, LOSSES),
    "dataset's index": Target(("data/*.npy", "data/*.json"), TRAIN, LOSSES),
    "checkpoint, resumed": Target(("run/checkpoints/*/*", "run/checkpoints/latest"), RESUME, ("run/metrics.jsonl",)),
    "checkpoint, asked": Target(
        ("run/checkpoints/*6/*", "run/checkpoints/latest"),
        (*QUERY, "--checkpoint", "run", "--gallery", "source"),
        ("answers/query.json",),
    ),
    "run's log": Target(
        ("run/metrics.jsonl", "run/config.yaml"), RESUME, ("run/checkpoints/step-00000008/state.json",)
    ),
    "exported checkpoint": Target(
        ("exported/*",), (*QUERY, "--checkpoint", "exported", "--gallery", "source"), ("answers/query.json",)
    ),
    "index of a gallery": Target(
        ("gallery.index",), (*QUERY, "--checkpoint", "run", "--index", "gallery.index"), ("answers/query.json",)
    ),
}


@dataclass
class Said:
    """What a command did."""

    code: int
    text: str
    crash: str = ""


def call(place: str, command: Sequence[str]) -> Said:
    """Runs a command in a folder, in this process."""
    import importlib

    os.chdir(place)
    sys.argv = [f"{command[0]}.py", *command[1:]]
    module, said, code, crash = importlib.import_module(command[0]), io.StringIO(), 0, ""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.run(module.main)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            crash = traceback.format_exc()
    text = re.sub(r"[^\n]*\r", "", said.getvalue())  # of a progress bar its last state
    return Said(code, text, crash)


class Worker:
    """A process that runs one command after the other, and is replaced when one hangs or ends it."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, place: Path, command: Sequence[str]) -> Said | None:
        """What the command did; None: it did not end in time."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(call, str(place), tuple(command)).result(LIMIT)
        except TimeoutError:
            for process in self.pool._processes.values():
                process.kill()
            self.pool = None
            return None
        except BrokenProcessPool:
            self.pool = None
            return Said(-1, "", "the process died")

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()


def make_world(folder: Path, worker: Worker) -> None:
    """Fills a folder with everything that the targets name, by the project's own commands.

    Raises:
        RuntimeError: one of them failed.
    """
    import soundfile
    from PIL import Image

    from src.data.tokenizer import SPECIALS

    rng, source = np.random.default_rng(0), folder / "source"
    source.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *CHARACTERS]) + "\n", encoding="utf-8")
    rows = []
    for index in range(RECORDS):
        image, sound = f"{index}.{'jpg' if index % 2 else 'png'}", f"{index}.wav"
        colours = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(np.kron(colours, np.ones((SIDE, SIDE, 1), np.uint8))).save(source / image)
        soundfile.write(source / sound, rng.normal(0, 0.1, 4800).astype(np.float32), 16000)
        caption = "".join(rng.choice(list(CHARACTERS), 6))
        split = "dev" if index % 4 == 3 else "train"
        rows.append({"id": f"r{index}", "image": image, "captions": [caption], "audio": [sound], "split": split})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (source / "manifest.jsonl").write_text(text, encoding="utf-8")
    config = Config(
        task="retrieval",
        model=small_model("vocab.txt"),
        data=DataConfig(path="data", batch_size=4, workers=1, eval_split="dev"),
        objectives=ObjectivesConfig(weights=WeightsConfig(contrastive=1.0)),
        optimizer=OptimizerConfig(warmup_steps=2),
        runtime=RuntimeConfig(mode="pynative"),
        train=TrainConfig(output="run", steps=6, log_every=1, save_every=2, keep_checkpoints=9),
    )
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    for command in (
        (*PREPARE, "--output", "data"),
        ("train", "--config", "config.yaml"),
        ("export", "--checkpoint", "run", "--output", "exported", "--format", "WEIGHTS"),
        (*QUERY, "--checkpoint", "run", "--gallery", "source", "--save-index", "gallery.index"),
    ):
        said = worker(folder, command)
        if said is None or said.code or said.crash:
            raise RuntimeError(f"{' '.join(command)}: {said}")
    shutil.rmtree(folder / "answers")


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Changes a byte, cuts the file, or deletes it."""
    data = bytearray(path.read_bytes())
    if how == "delete" or not data:
        path.unlink()
        return
    at = rng.randrange(len(data))
    if how == "cut":
        path.write_bytes(data[:at])
        return
    data[at] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def results(place: Path, target: Target) -> dict[str, object]:
    """What a command wrote, by file, without what depends on the clock."""
    found: dict[str, object] = {}
    for pattern in target.results:
        for path in sorted(place.glob(pattern)):
            data = re.sub(rb', "(samples_per_second|data_wait)": [0-9.]+', b"", path.read_bytes())
            found[str(path.relative_to(place))] = data.replace(str(place).encode(), b"")
    return found


def judge(target: Target, name: str, place: Path, said: Said | None, expected: dict[str, object]) -> str:
    """The outcome of a trial."""
    if said is None:
        return "hangs"
    if said.crash or said.code not in (0, cli.WRONG_USE):
        return "traceback"
    errors = [line for line in said.text.splitlines() if line.startswith("error: ")]
    told = said.text
    for path in place.glob("*/rejected.jsonl"):
        told += path.read_text(encoding="utf-8", errors="replace")
    stem = name.removesuffix(".db")
    if said.code:  # of a configuration that ends too early the key is named that it lacks
        named = len(errors) == 1 and (target.own or name in errors[0] or stem in errors[0])
        return "named" if named else "silent"
    if results(place, target) == expected:
        return "harmless"
    if stem in told:
        return "named"
    return "valid" if target.own else "silent"


@dataclass
class Trial:
    """One damaged file."""

    kind: str
    file: str
    how: str
    outcome: str
    said: str


def corrupt(folder: Path, times: int, kinds: Sequence[str], seed: int = 0) -> list[Trial]:
    """Makes the world and tries so many times, by turns with each kind of file."""
    rng, worker, trials = random.Random(seed), Worker(), []
    world = folder / "world"
    make_world(world, worker)
    expected = {}
    try:
        for kind in kinds:
            place = folder / "undamaged"
            shutil.copytree(world, place)
            said = worker(place, TARGETS[kind].command)
            expected[kind] = results(place, TARGETS[kind])
            if said is None or said.code or said.crash or not expected[kind]:
                raise RuntimeError(f"{kind}, undamaged: {said}")
            shutil.rmtree(place)
        for number in tqdm(range(times), unit="file"):
            kind = kinds[number % len(kinds)]
            target, place = TARGETS[kind], folder / "trial"
            shutil.copytree(world, place)
            path = rng.choice(
                sorted(path for pattern in target.files for path in place.glob(pattern) if path.is_file())
            )
            how = rng.choice(HOW)
            damage(path, how, rng)
            said = worker(place, target.command)
            outcome = judge(target, path.name, place, said, expected[kind])
            text = "" if said is None else said.crash or said.text
            trials.append(Trial(kind, str(path.relative_to(place)), how, outcome, text))
            shutil.rmtree(place)
    finally:
        worker.close()
    return trials


def report(trials: Sequence[Trial]) -> str:
    """A table: outcomes by kind of file."""
    kinds = list(dict.fromkeys(trial.kind for trial in trials))
    counts = Counter((trial.kind, trial.outcome) for trial in trials)
    rows = [(kind, *(str(counts[kind, outcome]) for outcome in OUTCOMES)) for kind in kinds]
    total = ("all", *(str(sum(counts[kind, outcome] for kind in kinds)) for outcome in OUTCOMES))
    return table([*rows, total], ["damaged", *OUTCOMES])


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--times", type=int, default=60, metavar="N", help="files that are damaged (default: 60)")
    parser.add_argument("--only", nargs="+", choices=TARGETS, metavar="KIND", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0, help="of files and damages (default: 0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = corrupt(Path(folder).resolve(), args.times, args.only or list(TARGETS), args.seed)
    for trial in trials:
        if trial.outcome in FAULTS:
            print(f"{trial.outcome}: {trial.kind}: {trial.file}, {trial.how}\n{trial.said[-1500:]}")
    print(report(trials))
    sys.exit(any(trial.outcome in FAULTS for trial in trials))


if __name__ == "__main__":
    cli.run(main)
