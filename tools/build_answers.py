"""Makes the list of answers (answers.txt) that questions about images are classified into.

python tools/build_answers.py --output answers.txt data/vqa
python tools/build_answers.py --output answers.txt --size 3129 data/vqa data/more

It holds the most frequent answers of the training questions. Name it by model.answers of a configuration.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.data.answers import write_answers


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--output", type=cli.user_path, required=True, metavar="FILE", help="file of answers to write")
    parser.add_argument("--size", type=int, default=3129, metavar="N", help="most answers (default: 3129)")
    parser.add_argument("folders", type=cli.user_path, nargs="+", metavar="DIR", help="dataset folder of questions")
    args = parser.parse_intermixed_args()
    if args.size < 1:
        parser.error("--size must be at least 1")
    write_answers(args.output, args.folders, args.size)


if __name__ == "__main__":
    cli.run(main)
