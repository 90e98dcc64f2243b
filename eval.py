"""Measures a trained model on a split of a dataset.

python eval.py --checkpoint runs/demo/pretrain                      everything that pre-training is judged by
python eval.py --checkpoint runs/demo/retrieval eval.rerank.top_k=0 retrieval by embeddings only
python eval.py --checkpoint runs/mine --ema                         the average of its weights (train.ema_decay)
python eval.py --checkpoint runs/demo/caption eval.decoding.beam_size=4 eval.decoding.length_penalty=0.6
"""

from dataclasses import replace

from src import cli
from src.config import TASKS, Config


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        type=cli.user_path,
        help="run (also RUN@best, RUN@step-…), checkpoint folder, or pretrained/opt_demo",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=cli.user_path, help="instead of the checkpoint's own configuration"
    )
    parser.add_argument("--split", default="", help="split of the dataset (default: eval.split)")
    parser.add_argument(
        "--output", metavar="DIR", type=cli.user_path, help="where results go (default: in the run folder)"
    )
    parser.add_ema()
    parser.add_settings()
    return parser.parse_intermixed_args()


def results_name(own: Config, config: Config, split: str) -> str:
    """``eval-SPLIT``, and behind it the task and the dataset where these are not the checkpoint's own.

    So that no results take the place of others. A task that measures files of its own has a folder of its own.
    """
    if not TASKS[config.task].trained:
        return f"eval-{config.task}"
    task = "" if config.task == own.task else f"-{config.task}"
    return f"eval-{split or config.eval.split}{task}{config.data.name_beside(own.data)}"


def main() -> None:
    args = parse()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.places import locate, results_folder, weights_suffix
    from src.evaluation.run import Evaluation
    from src.files import require_writable
    from src.inference.engine import Engine
    from src.inference.loading import load_model
    from src.report.tables import summary
    from src.runtime import setup
    from src.tasks import registry

    folder = locate(args.checkpoint, args.ema)
    # the network is the checkpoint's, with its vocabulary and codes, whichever configuration is used
    config = load_checkpoint_config(folder, args.settings, args.config)
    cli.note_passed_over(config.data.eval_path, args.settings)
    place = require_writable(args.output or results_folder(folder))  # before the model is built: mistakes come early
    setup(replace(config.runtime, distributed=False), config.seed)
    config, model = load_model(folder, args.settings, args.config, args.ema)
    evaluation = Evaluation(Engine(config, model, ema=args.ema), registry.get(config.task).evaluators)
    name = results_name(load_checkpoint_config(folder), config, args.split)
    output = args.output or place / f"{name}{weights_suffix(folder, args.ema)}"
    metrics = evaluation.run(args.split, output, checkpoint=folder)
    for line in evaluation.notes(args.split):
        print(f"note: {line}")
    print(f"{summary(metrics)}\n\n{output / 'metrics.json'}")


if __name__ == "__main__":
    cli.run(main)
