"""The whole path on generated data, by the commands that a user types. Finished stages are not repeated.

A stage is finished for one set of commands, resolved configurations and earlier stages: when any of them changes, it
runs again. An interrupted training goes on from its last checkpoint.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from src.config import load_config, to_yaml
from src.config.paths import path_setting
from src.errors import UserError
from src.files import ROOT, write_json
from src.report.document import write_report
from src.report.plots import loss_curves
from src.report.tables import summary as text_of
from src.report.tables import table

TRAININGS = ("image_tokenizer", "pretrain", "retrieval", "caption", "text_to_image")
EVALUATED = ("pretrain", "retrieval", "caption", "text_to_image")
# Of pre-training, only what later stages do not measure: masked prediction.
PRETRAIN_EVAL = ("eval.retrieval.gallery_size=200", "eval.rerank.top_k=0", "eval.masked.max_items=200")
PRETRAIN_EVAL += ("eval.caption.max_items=0", "eval.transcript.max_items=0", "eval.image_generation.max_items=0")

# A smoke run: every stage runs, nothing is learned.
FAST_DATA = ("--scenes", "300", "--dev", "40", "--test", "40")
FAST_TRAIN = ("data.batch_size=32", "train.steps=10", "train.log_every=1", "train.save_every=5")
FAST_TRAIN += ("optimizer.warmup_steps=2",)
FAST_EVAL = ("eval.batch_size=20", "eval.retrieval.gallery_size=40", "eval.rerank.top_k=4")
FAST_EVAL += ("eval.caption.max_items=20", "eval.transcript.max_items=20")
FAST_EVAL += ("eval.masked.max_items=20",)
FAST_IMAGE_EVAL = ("eval.image_generation.max_items=8",)

USUAL = Path("runs/demo")  # the folder by which stages are known, whichever they fill
AT_ONCE = 2  # commands side by side: an evaluation spends much of its time compiling, which keeps one core busy
POLL_SECONDS = 0.5

Command = tuple[str, ...]  # what follows "python"; the repository's own files by their whole path
Run = Callable[..., int]  # runs commands, several of them side by side, and returns the exit code
Running = dict[subprocess.Popen, IO[bytes]]  # processes, and what each has printed so far


class StageError(UserError):
    """A command of a stage failed."""


@dataclass(frozen=True)
class Stage:
    """A step of the demo: its commands, the folders that they fill and the stages whose results they read.

    Commands that do not read each other's results may run side by side.
    """

    name: str
    commands: tuple[Command, ...]
    folders: tuple[Path, ...]
    after: tuple[str, ...] = ()
    side_by_side: bool = False

    def digest(self, earlier: Mapping[str, str]) -> str:
        """Identifies commands and settings, given the digests of the ``earlier`` stages."""
        configs = [_resolved(command) for command in self.commands]
        parts = [list(map(_without_root, self.commands)), configs, [earlier[name] for name in self.after]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def is_there(self) -> bool:
        return all(folder.exists() for folder in self.folders)

    def is_interrupted(self) -> bool:
        """True if it holds a training that can be resumed."""
        return any((folder / "checkpoints" / "latest").exists() for folder in self.folders)


def build_stages(folder: Path, world: str, fast: bool) -> list[Stage]:
    """The stages in the order in which they run; results go to ``folder``, which may be relative to the current one."""
    data, codes, export, evaluation = (folder / name for name in ("data", "image_tokenizer", "export", "evaluation"))
    train_settings = (path_setting("data.path", data), *(FAST_TRAIN if fast else ()))
    eval_settings = (path_setting("data.path", data), *(FAST_EVAL if fast else ()))

    def command(script: str, task: str, *words: str) -> Command:
        return str(ROOT / script), *words, "--config", str(ROOT / "config" / task / f"{world}.yaml")

    def train(task: str, *settings: str) -> Command:
        return *command("train.py", task), *train_settings, path_setting("train.output", folder / task), *settings

    def evaluate(task: str, *settings: str) -> Command:
        files = ("--checkpoint", str(folder / task), "--output", str(evaluation / task))
        return *command("eval.py", task), *files, *eval_settings, *settings

    def start(earlier: str) -> str:
        return path_setting("train.init_from", folder / earlier)

    make_data = command("tools/prepare_data.py", "model", "demo", "--world", world)
    make_data = (*make_data, "--output", str(data), *(FAST_DATA if fast else ()))
    make_codes = (str(ROOT / "tools/make_image_codes.py"), "--data", str(data), "--checkpoint", str(codes))
    exported = ("--checkpoint", str(folder / "retrieval"), "--output", str(export))
    to_mindir = (*command("export.py", "retrieval"), *exported, "--format", "MINDIR")
    codes_setting = path_setting("data.codes", codes)
    make_images = train("text_to_image", codes_setting, start("pretrain"))
    # the longest first, so that the two cores end together
    last = (
        evaluate("retrieval"),
        evaluate("text_to_image", codes_setting, *(FAST_IMAGE_EVAL if fast else ())),
        evaluate("pretrain", codes_setting, *PRETRAIN_EVAL),
        evaluate("caption"),
        to_mindir,
    )
    return [
        Stage("data", (make_data,), (data,)),
        Stage("image_tokenizer", (train("image_tokenizer"), make_codes), (codes,), ("data",)),
        Stage("pretrain", (train("pretrain", codes_setting),), (folder / "pretrain",), ("image_tokenizer",)),
        Stage("retrieval", (train("retrieval", start("pretrain")),), (folder / "retrieval",), ("pretrain",)),
        Stage("caption", (train("caption", start("retrieval")),), (folder / "caption",), ("retrieval",)),
        Stage("text_to_image", (make_images,), (folder / "text_to_image",), ("image_tokenizer", "pretrain")),
        Stage("evaluate_and_export", last, (evaluation, export), EVALUATED, side_by_side=True),
    ]


def run_commands(*commands: Command) -> int:
    """Shows commands as a user would type them and runs them: one on this terminal, several side by side.

    The output of one of several is shown when it has ended. When one fails, the others are stopped.

    Returns:
        The exit code: 0, or that of the first one that failed.
    """
    for command in commands:
        shown = _without_root(command) if Path.cwd() == ROOT else command
        print(f"$ python {shlex.join(shown)}", flush=True)
    if len(commands) == 1:
        return subprocess.run([sys.executable, *commands[0]], check=False).returncode
    running: Running = {}
    try:
        return _run_side_by_side(deque(commands), running)
    finally:
        for process, output in running.items():
            process.kill()
            process.wait()
            output.close()


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    run: Run = run_commands,
    usual: Sequence[Stage] = (),
    restart: bool = False,
) -> dict[str, float]:
    """Runs the stages that are not finished; returns the minutes that each stage took, now or in an earlier call.

    Args:
        usual: the same stages in another folder, which is always the same: by them a stage is known again however its
            own folder is spelled, and wherever it has moved.
        restart: stages that were made with other options or settings are emptied and run again.

    Raises:
        ConfigError: a configuration cannot be used; nothing has run.
        StageError: a folder is not the demo's, or holds what ``restart`` alone may empty, and nothing has run; or a
            command failed, and the stages before it stay finished.
    """
    digests, spelled = _digests(usual or stages), _digests(stages)  # earlier versions noted the second
    book = folder / "stages.json"
    records: dict[str, dict[str, Any]] = _read(book) if book.exists() else {}
    alike = {name: known["digest"] in (digests.get(name), spelled.get(name)) for name, known in records.items()}
    for stage in stages:
        if stage.name not in records:
            _refuse_foreign(stage)
    others = [stage.name for stage in stages if not alike.get(stage.name, True) and _holds_work(stage, records)]
    if others and not restart:
        hint = "repeat those, choose another --output, or make them anew with --restart"
        raise StageError(f"{folder} was filled with other options or settings ({', '.join(others)}): {hint}")
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        known = records.get(stage.name)
        same = alike.get(stage.name, False) and stage.is_there()
        if same and known["finished"]:
            print(f"{title}: finished before, in {known['minutes']:.1f} minutes", flush=True)
            continue
        resume = same and stage.is_interrupted()
        if not resume:
            _clear(stage)
        print(f"\n{title}{': resumes from its last checkpoint' if resume else ''}", flush=True)
        spent = known["minutes"] if resume else 0.0
        records[stage.name] = {"digest": digests[stage.name], "finished": False, "minutes": spent}
        write_json(book, records)
        began = time.monotonic()
        try:
            _run_stage(stage, run, resume)
            records[stage.name]["finished"] = True
        finally:
            records[stage.name]["minutes"] = spent + (time.monotonic() - began) / 60
            write_json(book, records)
    return {stage.name: records[stage.name]["minutes"] for stage in stages}


def summarise(folder: Path, world: str, minutes: Mapping[str, float]) -> dict[str, Any]:
    """Collects the results of the stages: the content of ``summary.json``."""
    pretrain, retrieval, caption, images = (_read(folder / "evaluation" / task / "metrics.json") for task in EVALUATED)
    return {
        "world": world,
        "gallery": retrieval["gallery"],
        "retrieval": retrieval["retrieval"],
        "reranked": retrieval.get("reranked", {}),
        "reconstruction": images["reconstruction"],
        "caption": caption["caption"],
        "image_generation": images["image_generation"],
        "masked": pretrain["masked"],
        "export": {"max_abs_diff": _read(folder / "export" / "export.json")["max_abs_diff"]},
        "minutes": {**minutes, "total": sum(minutes.values())},
        "parameters": retrieval["parameters"],
        "versions": retrieval["versions"],
    }


def gather_figures(folder: Path) -> list[Path]:
    """Collects the figures of the evaluations and the loss curves of the trainings in ``figures``; returns paths."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    loss_curves([folder / task / "metrics.jsonl" for task in TRAININGS], figures / "loss_curves.png")
    for task in EVALUATED:  # where two have the same name, the later stage's figure replaces the earlier one's
        for figure in (folder / "evaluation" / task / "figures").glob("*.png"):
            shutil.copy(figure, figures)
    return sorted(figures.iterdir())


def run_demo(folder: Path, world: str, fast: bool, run: Run = run_commands, restart: bool = False) -> None:
    """Runs the demo into a folder and prints its results.

    Raises:
        UserError: as :func:`run_stages`.
        KeyboardInterrupt: its message says how to go on.
    """
    try:
        usual = build_stages(USUAL, world, fast)
        minutes = run_stages(build_stages(folder, world, fast), folder, run, usual, restart)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same call goes on from here") from None
    results = summarise(folder, world, minutes)
    write_json(folder / "summary.json", results)
    print(f"\n{text_of(results)}\n")
    print(table([[stage, f"{spent:.1f}"] for stage, spent in results["minutes"].items()], ["minutes", ""]))
    print(f"\nexported graphs differ from the model by at most {results['export']['max_abs_diff']:.1e}")
    report = write_report([folder / task for task in TRAININGS], folder / "report.html")
    for path in (folder / "summary.json", *gather_figures(folder), report):
        print(path)


def _run_stage(stage: Stage, run: Run, resume: bool) -> None:
    steps = [stage.commands] if stage.side_by_side else [(command,) for command in stage.commands]
    if resume:  # in a stage that can be resumed, the first command trains
        steps[0] = ((*steps[0][0], "--resume"), *steps[0][1:])
    for commands in steps:
        code = run(*commands)
        if code:
            raise StageError(f"stage {stage.name} failed with exit code {code}; the same call goes on from here")


def _run_side_by_side(waiting: deque[Command], running: Running) -> int:
    """Runs the waiting commands, AT_ONCE at a time; returns at the first failure, while others may still run."""
    with tqdm(total=len(waiting), desc="side by side", unit="command") as bar:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has been shown
                command = [sys.executable, *waiting.popleft()]
                running[subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)] = output
            time.sleep(POLL_SECONDS)
            if sys.stderr.isatty():  # no line in a log file every half second
                bar.refresh()
            for process in [process for process in running if process.poll() is not None]:
                with running.pop(process) as output:
                    output.seek(0)
                    bar.write(output.read().decode(errors="replace"))
                bar.update()
                if process.returncode:
                    return process.returncode
    return 0


def _refuse_foreign(stage: Stage) -> None:
    """Raises StageError for a folder that the demo did not make: a stage empties its folders when it starts."""
    for folder in stage.folders:
        if folder.exists():
            raise StageError(f"{folder} exists but is not from a demo run: choose another --output, or move it away")


def _holds_work(stage: Stage, records: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the folders of a known stage hold what took its time: its results, or a training's checkpoint."""
    return stage.is_there() and (records[stage.name]["finished"] or stage.is_interrupted())


def _clear(stage: Stage) -> None:
    for folder in stage.folders:
        shutil.rmtree(folder, ignore_errors=True)


def _digests(stages: Sequence[Stage]) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in stages:
        found[stage.name] = stage.digest(found)
    return found


def _resolved(command: Command) -> str:
    """The whole configuration that the command runs with, defaults included; empty if it reads none.

    The repository's own files stand in it by their path inside: the repository may move.
    """
    if "--config" not in command:
        return ""
    # what follows an option is its value, whatever a folder is called
    settings = [word for before, word in pairwise(command) if "=" in word and not before.startswith("--")]
    return to_yaml(load_config(command[command.index("--config") + 1], settings)).replace(f"{ROOT}/", "")


def _without_root(command: Command) -> Command:
    """The command as it is typed in the repository."""
    return tuple(word.removeprefix(f"{ROOT}/") for word in command)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
