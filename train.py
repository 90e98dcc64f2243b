"""Trains a model for the task that the configuration names: pretrain, retrieval, caption, image_tokenizer and others.

python train.py --config config/pretrain/demo.yaml
python train.py --config config/pretrain/demo.yaml train.steps=1000 optimizer.lr=1e-3 train.output=runs/longer
python train.py --config config/pretrain/demo.yaml --resume         resumes a run that was stopped
python train.py --config config/pretrain/demo.yaml --resume=auto    the same, or begins: what a scheduler calls
python train.py --config config/caption/demo.yaml train.init_from=runs/demo/pretrain
python train.py --config mine.yaml model.text.vocab=vocab.txt train.init_from=pretrained/opt_demo   your own vocabulary
"""

import sys
from pathlib import Path

from src import cli
from src.config import load_config


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--config", required=True, type=cli.user_path, metavar="FILE", help="YAML file, see config/")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of train.output")
    # an option of its own: with an optional value, --resume would take a setting behind it for that
    automatic = {"action": "store_const", "const": "auto", "help": "the same if there is one, otherwise begin"}
    parser.add_argument("--resume=auto", dest="resume", **automatic)
    parser.add_argument("--verbose", action="store_true", help="also print the parameters of every part")
    parser.add_settings()
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    config = load_config(args.config, args.settings)
    # not before: they import MindSpore, for which --help and mistakes in the configuration need not wait
    from src.runtime import setup
    from src.training.trainer import Trainer

    rank, ranks = setup(config.runtime, config.seed)
    trainer = Trainer(config, rank, ranks, args.resume, args.verbose)
    try:
        stopped_by = trainer.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(how_to_go_on(trainer.folder)) from None
    if stopped_by is not None:
        print(f"stopped by {stopped_by.name}: {how_to_go_on(trainer.folder)}", file=sys.stderr)
        sys.exit(cli.STOPPED)


def how_to_go_on(folder: Path) -> str:
    """What an interrupted run is told."""
    from src.checkpoints.files import CheckpointError
    from src.checkpoints.places import locate

    try:
        return f"the same command with --resume goes on from {locate(folder)}"
    except CheckpointError:
        return f"{folder} holds no checkpoint yet (train.save_every): the same command starts again"


if __name__ == "__main__":
    cli.run(main)
