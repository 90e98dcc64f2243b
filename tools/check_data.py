"""Checks a dataset folder: its files against their checksums, then every record against its own, decoded.

python tools/check_data.py data/mine
python tools/check_data.py data/mine --workers 2

Problems are listed with file and record; the exit code is 0 if there are none. Each shard is read on its own, so that
damage to one hides nothing of the others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.data.check import report


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("folder", type=cli.user_path, metavar="DIR", help="dataset folder")
    parser.add_argument("--workers", type=int, default=cli.cores(), metavar="N", help="threads (default: all cores)")
    args = parser.parse_args()
    report(args.folder, args.workers)


if __name__ == "__main__":
    cli.run(main)
