"""Checks a dataset folder: its files against their checksums, then every record against its own, decoded.

python tools/check_data.py data/mine
python tools/check_data.py data/mine --workers 2
python tools/check_data.py data/mine --config config/model/base.yaml model.text.vocab=vocab.txt

With --config or key=value words it also prints how long texts and audio are, and what the model would not read of them.

Problems are listed with file and record; the exit code is 0 if there are none. Each shard is read on its own, so that
damage to one hides nothing of the others.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.config import load_config
from src.data.check import report
from src.data.coverage import report_coverage


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("folder", type=cli.user_path, metavar="DIR", help="dataset folder")
    parser.add_argument("--workers", type=int, default=cli.cores(), metavar="N", help="threads (default: all cores)")
    parser.add_argument(
        "--config", type=cli.user_path, metavar="FILE", help="of a run: how much its vocabulary and lengths lose"
    )
    parser.add_settings()
    args = parser.parse_intermixed_args()
    model = load_config(args.config, args.settings).model if args.config or args.settings else None
    report(args.folder, args.workers)
    if model:
        report_coverage(args.folder, model)


if __name__ == "__main__":
    cli.run(main)
