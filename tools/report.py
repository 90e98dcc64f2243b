"""Writes a report of runs: one HTML file with curves, metrics, examples and settings, several runs side by side.

python tools/report.py runs/demo/pretrain                          report.html in the run folder
python tools/report.py runs/demo --output report.html              all runs of a folder
python tools/report.py runs/first runs/second --output both.html   two runs and what differs

The file opens from disk in any browser and loads nothing. A folder that eval.py wrote may stand for a run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=cli.user_path, metavar="RUN", help="run folder, or a folder of runs")
    where = "the file to write (default: report.html in the first RUN)"
    parser.add_argument("--output", type=cli.user_path, metavar="FILE", help=where)
    args = parser.parse_args()
    from src.report.document import write_report

    print(write_report(args.runs, args.output or args.runs[0] / "report.html"))


if __name__ == "__main__":
    cli.run(main)
