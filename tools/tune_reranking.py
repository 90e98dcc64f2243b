"""Chooses the weights of re-ranking (eval.rerank) on a split that is not reported.

python tools/tune_reranking.py --checkpoint runs/demo/retrieval
python tools/tune_reranking.py --checkpoint runs/demo/retrieval --split dev --output runs/tuned eval.rerank.top_k=8

Every candidate is scored once, then the weights are searched on a grid. The results are reranking.json (every weighting
with its recall) and reranking.yaml (the best one). In the checkpoint's folder, eval.py and infer.py use the latter.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, type=cli.user_path, metavar="DIR", help="run or checkpoint folder"
    )
    parser.add_argument("--split", metavar="NAME", help="split to choose the weights on (default: data.eval_split)")
    parser.add_argument(
        "--output",
        type=cli.user_path,
        metavar="DIR",
        help="folder of the results (default: the checkpoint, which then uses them)",
    )
    parser.add_settings()
    args = parser.parse_intermixed_args()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.places import locate
    from src.evaluation.run import Evaluation
    from src.evaluation.tuning import tune
    from src.files import require_writable
    from src.inference.engine import Engine
    from src.inference.loading import load_model
    from src.runtime import setup
    from src.tasks import registry

    folder = locate(args.checkpoint)
    config = load_checkpoint_config(folder, args.settings)
    cli.note_passed_over(config.data.eval_path, args.settings)
    output = require_writable(args.output or folder)  # before hours of ranking
    setup(replace(config.runtime, distributed=False), config.seed)
    config, model = load_model(folder, args.settings)
    evaluation = Evaluation(Engine(config, model), registry.get(config.task).evaluators)
    tune(evaluation, args.split or config.data.eval_split, output)


if __name__ == "__main__":
    cli.run(main)
