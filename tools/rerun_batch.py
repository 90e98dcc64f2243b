"""Computes again a batch at which a training step was not finite: which loss, which gradients, which samples.

python tools/rerun_batch.py runs/mine/bad_batches/step-00001234-rank-0.npz
python tools/rerun_batch.py runs/mine/bad_batches/step-00001234-rank-0.npz --checkpoint runs/mine@step-00001000

A run keeps such batches beside bad_batches.jsonl. Used are the weights of the latest checkpoint before that step, with
the masks of dropout that it had. If the batch is finite with them, the weights of then are the cause, not the data:
resume with a lower optimizer.lr or clip_norm. If it is not, each sample is tried alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("batch", type=cli.user_path, metavar="FILE", help="bad_batches/step-….npz of a run folder")
    parser.add_argument(
        "--checkpoint", type=cli.user_path, metavar="DIR", help="run or checkpoint (default: the latest before it)"
    )
    args = parser.parse_args()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.training.rerun import rerun

    rerun(args.batch, args.checkpoint)


if __name__ == "__main__":
    cli.run(main)
