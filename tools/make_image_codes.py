"""Computes the codes of every image of a dataset with a trained image tokenizer, and keeps them beside the shards.

python tools/make_image_codes.py --data runs/demo/data --checkpoint runs/demo/image_tokenizer

A training that predicts codes (objectives mvm_code, denoise_image) names the same image tokenizer by data.codes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--data", required=True, type=cli.user_path, metavar="DIR", help="dataset folder")
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=cli.user_path,
        metavar="DIR",
        help="run or checkpoint of the image tokenizer",
    )
    parser.add_settings()
    args = parser.parse_intermixed_args()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.inference.image_codes import make_codes

    make_codes(args.data, args.checkpoint, args.settings)


if __name__ == "__main__":
    cli.run(main)
