"""What each pre-training objective brings: the same run without it, measured on held-out data.

    python -m benchmarks.ablation --output runs/ablation

Every row is a training of its own (same steps, same seed), then an evaluation of the test split by embeddings and by
what the decoders generate. A row that is finished is not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from src.evaluation.report import table

VARIANTS: dict[str, tuple[str, ...]] = {  # objectives that are switched off
    "complete": (),
    "without MLM": ("mlm",),
    "without MVM": ("mvm_code", "mvm_feature"),
    "without MAM": ("mam_feature", "mam_contrastive"),
    "without contrastive": ("contrastive",),
    "without modality level": ("denoise_text", "denoise_image"),
    "without sample level": ("matching",),
}
COLUMNS = {  # header → path into metrics.json
    "t→i R@1": ("retrieval", "t2i", "r1"),
    "i→t R@1": ("retrieval", "i2t", "r1"),
    "a→i R@1": ("retrieval", "a2i", "r1"),
    "a→t R@1": ("retrieval", "a2t", "r1"),
    "facts right": ("caption", "facts_right"),
    "drawn R@1": ("drawing", "text", "r1"),
    "words": ("probe", "mlm_accuracy"),
    "matching": ("probe", "matching_accuracy"),
}


def run_variant(config: str, folder: Path, off: tuple[str, ...], settings: list[str]) -> dict[str, Any]:
    """Trains without some objectives, unless that was done before, and returns the metrics of the test split."""
    metrics = folder / "eval" / "metrics.json"
    if not metrics.is_file():
        train = ["train.py", "--config", config, f"train.output={folder}", *settings]
        train += [f"objectives.{name}=0" for name in off]
        if (folder / "checkpoints" / "latest").exists():
            train.append("--resume")
        subprocess.run([sys.executable, *train], check=True)
        # the whole configuration again: what was not trained is measured too
        measure = ["eval.py", "--config", config, "--checkpoint", str(folder), "--output", str(metrics.parent)]
        subprocess.run([sys.executable, *measure, "eval.rerank=0", *settings], check=True)
    return json.loads(metrics.read_text(encoding="utf-8"))


def look_up(metrics: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        metrics = metrics.get(key, {}) if isinstance(metrics, dict) else {}
    return metrics if isinstance(metrics, int | float) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/pretrain/demo_complete.yaml", help="the complete run")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="a folder for each row")
    parser.add_argument("--rows", nargs="*", choices=tuple(VARIANTS), default=list(VARIANTS), help="default: all")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration, for every row")
    args = parser.parse_intermixed_args()
    rows = []
    for name in args.rows:
        metrics = run_variant(args.config, args.output / name.replace(" ", "-"), VARIANTS[name], args.settings)
        rows.append([name, *(look_up(metrics, path) for path in COLUMNS.values())])
        print(table(rows, ["pre-training", *COLUMNS]), flush=True)


if __name__ == "__main__":
    main()
