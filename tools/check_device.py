"""Checks that MindSpore computes rightly on a device: operators and one training step, each beside NumPy.

python tools/check_device.py CPU
python tools/check_device.py GPU
python tools/check_device.py Ascend --quick

It prints the versions, on a GPU which libraries are found or missing, and for every check how far the device is off.
The exit code is 0 if all are right. With --quick it multiplies two matrices and prints one line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("device", nargs="?", choices=("CPU", "GPU", "Ascend"), default="CPU", help="default: CPU")
    parser.add_argument("--quick", action="store_true", help="one product alone")
    args = parser.parse_args()
    if args.quick:
        from src.config import RuntimeConfig  # not before: what imports MindSpore, --help need not wait for
        from src.runtime import check_product, setup

        setup(RuntimeConfig(device=args.device), seed=0)
        print(check_product())
    else:
        from src.training.device_check import report

        report(args.device)


if __name__ == "__main__":
    cli.run(main)
