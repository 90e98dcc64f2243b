"""Makes a WordPiece vocabulary (vocab.txt) that spells every text of a corpus.

python tools/build_vocab.py --output vocab.txt captions.txt
python tools/build_vocab.py --output vocab.txt --size 8000 data/mine captions.txt

It holds the special tokens, every character and frequent words. Name it by model.text.vocab of a configuration.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.data.tokenizer import write_vocab


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--output", type=cli.user_path, required=True, metavar="FILE", help="vocabulary file to write")
    parser.add_argument("--size", type=int, default=21128, metavar="N", help="most tokens (default: 21128, as BERT)")
    parser.add_argument(
        "files",
        type=cli.user_path,
        nargs="+",
        metavar="FILE|DIR",
        help="UTF-8 text, one sentence a line; or a dataset folder, whose training captions are read",
    )
    args = parser.parse_intermixed_args()
    write_vocab(args.output, args.files, args.size)


if __name__ == "__main__":
    cli.run(main)
