"""Checks that MindSpore can use a device: sets it up as a training does, and multiplies two matrices on it.

python tools/check_device.py
python tools/check_device.py GPU

One line says what was found; the exit code is 0 if the product equals NumPy's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("device", nargs="?", choices=("CPU", "GPU", "Ascend"), default="CPU", help="default: CPU")
    args = parser.parse_args()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.config import RuntimeConfig
    from src.runtime import check_product, setup

    setup(RuntimeConfig(device=args.device), seed=0)
    print(check_product())


if __name__ == "__main__":
    cli.run(main)
