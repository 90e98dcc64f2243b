"""What each pre-training objective brings: the same run without it, measured on held-out data.

    python -m benchmarks.ablation
    python -m benchmarks.ablation --markdown table.md train.steps=400

Every row is a training run of its own (same steps, same seed) and an evaluation of the test split: retrieval by
embeddings, and generation. What a row did not train is measured as well, and is at chance level; columns with Δ count
from chance. A row that is finished is not repeated, an interrupted one goes on. The data and the codes of
its images must be there: bash scripts/run_demo.sh makes them, or the commands at the head of the configuration.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src import cli
from src.config import load_config, to_yaml
from src.config.paths import path_setting
from src.errors import UserError
from src.files import write_json
from src.report.tables import table

VARIANTS: dict[str, tuple[str, ...]] = {  # objectives that are switched off
    "complete": (),
    "without MLM": ("mlm",),
    "without MVM": ("mvm_code", "mvm_feature", "mvm_class"),
    "without MAM": ("mam_feature", "mam_contrastive"),
    "without contrastive": ("contrastive",),
    "without modality level": ("denoise_text", "denoise_image"),
    "without sample level": ("matching",),
}
COLUMNS = {  # header → path into metrics.json; Δ: above chance
    "t→i R@1": ("retrieval", "text_to_image", "R@1"),
    "a→t R@1": ("retrieval", "audio_to_text", "R@1"),
    "a→i R@1": ("retrieval", "audio_to_image", "R@1"),
    "a→i R@10": ("retrieval", "audio_to_image", "R@10"),
    "facts right": ("caption", "facts_right"),
    "colours": ("caption", "facts", "colours"),
    "places": ("caption", "facts", "places"),
    "counts": ("caption", "facts", "counts"),
    "objects": ("caption", "facts", "objects"),
    "generated R@1": ("image_generation", "text", "R@1"),
    "generated R@10": ("image_generation", "text", "R@10"),
    "Δ words": ("masked", "mlm_accuracy"),
    "Δ codes": ("masked", "mvm_code_accuracy"),
    "Δ patches": ("masked", "patch_cosine"),
    "Δ audio": ("masked", "frame_cosine"),
    "Δ five cases": ("masked", "matching_accuracy"),
    "minutes": ("minutes",),
}
# A quarter of an hour of one core a row, and what the table in docs/pretraining.md was made with, whatever the demo's
# own rates and shares are. Half of each batch generates text and half images, or neither would get far.
SMALL = ("data.batch_size=64", "objectives.matching.batch_share=0.25", "objectives.denoise_image.batch_share=0.5")
SMALL += ("objectives.denoise_text.given=[image+audio,image,audio]",)
SMALL += ("optimizer.lr=0.004", "optimizer.muon_lr=0.02", "optimizer.warmup_steps=30")
SMALL += ("train.steps=300", "train.save_every=50")
SMALL += ("train.eval_every=0", "eval.retrieval.gallery_size=500", "eval.rerank.top_k=0")
SMALL += ("eval.caption.max_items=500", "eval.transcript.max_items=500")
SMALL += ("eval.image_generation.max_items=200", "eval.masked.max_items=500")

Run = Callable[[Sequence[str]], int]  # what follows "python" → exit code


class RowError(UserError):
    """A row that could not be trained or measured."""


def run_command(command: Sequence[str]) -> int:
    """Shows the command as a user would type it, runs it on this terminal and returns its exit code."""
    print(f"$ python {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, *command], check=False).returncode


@dataclass
class Row:
    """One line of the table.

    Args:
        name: of VARIANTS.
        config: the complete pre-training.
        folder: its run.
        settings: changes of the configuration, the same for every row.
        run: runs a command.
    """

    name: str
    config: str
    folder: Path
    settings: tuple[str, ...]
    run: Run = run_command
    minutes: float = field(default=0.0, init=False)  # of training and evaluation, interrupted attempts included

    def metrics(self) -> dict[str, Any]:
        """Those of the test split, with the minutes that the row took; trains and evaluates what is not finished.

        Raises:
            ConfigError: the configuration cannot be used.
            RowError: a command failed, or the folder holds something else.
        """
        book, measured = self.folder / "row.json", self.folder / "eval" / "metrics.json"
        off = tuple(f"objectives.weights.{name}=0" for name in VARIANTS[self.name])
        train = ("train.py", "--config", self.config, *self.settings, *off, path_setting("train.output", self.folder))
        digest = hashlib.sha256(to_yaml(load_config(self.config, train[3:])).encode()).hexdigest()
        if self.folder.exists() and not book.exists():
            raise RowError(f"{self.folder} is there but no row of an ablation: choose another --output or move it away")
        known = json.loads(book.read_text(encoding="utf-8")) if book.exists() else {}
        if known.get("digest") == digest:
            self.minutes = known["minutes"]
        elif known:
            print(f"{self.name}: the settings have changed, it starts anew", flush=True)
            shutil.rmtree(self.folder)
        if not measured.is_file():
            self._note(book, digest)
            going_on = (self.folder / "checkpoints" / "latest").exists()
            self._do((*train, "--resume") if going_on else train, book, digest)
            # the whole configuration again: what was not trained is measured too
            places = ("--checkpoint", str(self.folder), "--output", str(measured.parent))
            self._do(("eval.py", "--config", self.config, *places, *self.settings), book, digest)
        return {**json.loads(measured.read_text(encoding="utf-8")), "minutes": self.minutes}

    def _do(self, command: tuple[str, ...], book: Path, digest: str) -> None:
        began = time.monotonic()
        try:
            code = self.run(command)
        finally:
            self.minutes += (time.monotonic() - began) / 60
            self._note(book, digest)
        if code:
            raise RowError(f"{self.name}: {command[0]} failed with exit code {code}; the same call goes on from here")

    def _note(self, book: Path, digest: str) -> None:
        write_json(book, {"row": self.name, "digest": digest, "minutes": self.minutes})


def value_of(metrics: dict[str, Any], path: tuple[str, ...]) -> float | None:
    """What the table shows. Masked prediction counts from chance, since every row compares features of its own."""
    value = look_up(metrics, path)
    if path[0] != "masked" or value is None:
        return value
    chance = look_up(metrics, ("masked", f"{path[1].rpartition('_')[0]}_chance"))
    return None if chance is None else value - chance


def look_up(metrics: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        metrics = metrics.get(key, {}) if isinstance(metrics, dict) else {}
    return metrics if isinstance(metrics, int | float) else None


def markdown(rows: Sequence[Sequence[Any]], headers: Sequence[str], caption: str) -> str:
    """A table for the documentation, the caption below it."""
    lines = [list(headers), ["---", *["---:"] * (len(headers) - 1)], *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption}\n"


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main(run: Run = run_command) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        epilog=f"Unless they are given, the settings are {' '.join(SMALL)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="config/pretrain/demo.yaml", metavar="FILE", help="the complete run")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/ablation"), metavar="DIR", help="a folder for each row"
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="default: all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where the table goes, for the documentation")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration, for every row")
    args = parser.parse_intermixed_args()
    settings = (*SMALL, *args.settings)
    headers, rows = ["pre-training", *COLUMNS], []
    for name in args.rows:
        metrics = Row(name, args.config, args.output / name.replace(" ", "-"), settings, run).metrics()
        rows.append([name, *(value_of(metrics, path) for path in COLUMNS.values())])
        print("\n" + table(rows, headers) + "\n", flush=True)
        if args.markdown:
            command = shlex.join(("python", "-m", "benchmarks.ablation", *sys.argv[1:]))
            args.markdown.write_text(markdown(rows, headers, f"`{command}`"), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
