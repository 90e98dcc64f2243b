"""Estimates what a training step takes of a device's memory, without running it.

python tools/estimate_memory.py --config config/pretrain/base.yaml
python tools/estimate_memory.py --config config/pretrain/base.yaml --devices 8 --batch 16 runtime.device=Ascend

Network, optimiser and graph are built without values; the device of the configuration need not be there. What the
framework, the communication and the fragmentation of memory take is not part of it: leave a tenth of the device free.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.config import load_config


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("--config", type=cli.user_path, required=True, metavar="FILE", help="of a run")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many train together (default: 1)")
    parser.add_argument("--batch", type=int, metavar="N", help="samples of each device (default: data.batch_size)")
    parser.add_settings()
    args = parser.parse_intermixed_args()
    if args.devices < 1:
        parser.error("--devices must be at least 1")
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.training.memory import estimate, report

    batch = [f"data.batch_size={args.batch}"] if args.batch is not None else []
    config = load_config(args.config, [*args.settings, *batch])
    print(report(config, estimate(config, args.devices), args.devices))


if __name__ == "__main__":
    cli.run(main)
