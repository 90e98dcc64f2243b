"""Measures a trained model on a dataset, searches a folder with it, or writes captions and transcripts.

python eval.py --checkpoint runs/demo/pretrain                      retrieval and captions on the test split
python eval.py --checkpoint runs/demo/pretrain eval.rerank=0        … by embeddings alone
python eval.py --checkpoint pretrained/opt_demo --query 红底，中间一只猫 --gallery photos --save-index photos.index
python eval.py --checkpoint pretrained/opt_demo --query question.wav --index photos.index
python eval.py --checkpoint pretrained/opt_demo --input photos      captions of pictures, transcripts of sounds
"""

import argparse
from dataclasses import replace
from pathlib import Path

from src import cli
from src.config import load_config
from src.evaluation import query
from src.evaluation.report import summary
from src.runtime import setup
from src.tasks import registry
from src.training.checkpoint import load_checkpoint_config, load_model
from src.weights import locate, own_files


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run or checkpoint folder, pretrained/…")
    parser.add_argument("--config", metavar="FILE", help="configuration to use instead of the checkpoint's own")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where results go (default: in the run folder)")
    parser.add_argument("--split", default="", help="split of the dataset (default: eval.split)")
    parser.add_argument("--query", metavar="TEXT|PICTURE|SOUND", help="what to look for in --gallery or --index")
    parser.add_argument("--gallery", metavar="DIR", type=Path, help="folder of pictures, sounds and .txt files")
    parser.add_argument("--index", metavar="FILE", type=Path, help="the gallery as --save-index kept it")
    parser.add_argument("--save-index", metavar="FILE", type=Path, help="keep the gallery's embeddings")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many --query shows (default: 5)")
    parser.add_argument("--input", metavar="PICTURE|SOUND|DIR", type=Path, help="what to describe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration")
    args = parser.parse_intermixed_args()
    searches = args.gallery is not None or args.index is not None
    if searches != (args.query is not None or args.save_index is not None):
        parser.error("--query or --save-index goes together with --gallery or --index")
    if searches and args.input is not None:
        parser.error("--query and --input exclude each other")
    if args.top < 1:
        parser.error("--top must be at least 1")
    return args


def main() -> None:
    args = parse()
    folder = locate(args.checkpoint)
    # the weights were trained with the checkpoint's vocabulary and codes, whichever configuration is used
    settings = [*own_files(folder), *args.settings]
    config = load_config(args.config, settings) if args.config else load_checkpoint_config(folder, settings)
    # before the model is built, so that mistakes are told at once
    search = query.prepare(args.query, args.gallery, args.index, folder, config)
    things = query.read_things(args.input, config) if args.input else []
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    mode = "pynative" if search and search.few else config.runtime.mode
    setup(replace(config.runtime, distributed=False, mode=mode), config.seed)
    config, model = load_model(folder, settings, args.config)
    evaluator = registry.get(config.task).evaluator(config, model)
    if search:
        search.run(evaluator, args.top, args.output or run_folder(folder) / "query", args.save_index)
    elif things:
        query.describe(evaluator, things, args.output)
    else:
        output = args.output or run_folder(folder) / f"eval-{args.split or config.eval.split}"
        print(f"{summary(evaluator.run(args.split, output))}\n\n{output / 'metrics.json'}")


def run_folder(checkpoint: Path) -> Path:
    """Where results of a checkpoint go; a model in the box is left as it is."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else Path("runs") / checkpoint.name


if __name__ == "__main__":
    cli.run(main)
