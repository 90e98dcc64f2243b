"""Runs the whole path on generated data, from making it to a report. Ten to fifteen minutes on two cores.

python tools/run_demo.py                            results in runs/demo
python tools/run_demo.py --fast                     every stage with little data and few steps, in runs/demo-fast
python tools/run_demo.py --world demo_full --output runs/large

Finished stages are not repeated by another call, and an interrupted training goes on from its last checkpoint. What was
made with other options or settings is left as it is, unless --restart says otherwise.
"""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.demo.stages import run_demo


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="little data and few steps, to see that all parts work")
    parser.add_argument(
        "--world", choices=("demo", "demo_full"), default="demo", help="28 objects (default), or all 86"
    )
    parser.add_argument(
        "--output",
        type=cli.user_path,
        metavar="DIR",
        help="folder of the results (default: runs/demo, runs/demo-fast, …)",
    )
    parser.add_argument("--restart", action="store_true", help="empty and repeat what was made with other settings")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception it also ends the command that runs
    folder = args.output or Path("runs") / (args.world + ("-fast" if args.fast else ""))
    run_demo(folder, args.world, args.fast, restart=args.restart)


if __name__ == "__main__":
    cli.run(main)
