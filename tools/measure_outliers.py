"""Measures where the inputs of a model usually lie, so that infer.py can say when one is far from all of them.

python tools/measure_outliers.py --checkpoint runs/demo/retrieval
python tools/measure_outliers.py --checkpoint pretrained/opt_demo data.path=runs/demo_full/data

Reads the training split and the dev split. The result is outliers.safetensors in the checkpoint's folder, where
infer.py uses it. Printed is how many inputs of each split lie beyond the limit: on these infer.py remarks without need.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, type=cli.user_path, metavar="DIR", help="run or checkpoint folder"
    )
    parser.add_argument(
        "--output", type=cli.user_path, metavar="DIR", help="folder of the result (default: the checkpoint)"
    )
    parser.add_settings()
    args = parser.parse_intermixed_args()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.places import locate
    from src.files import require_writable
    from src.inference import outliers
    from src.inference.engine import Engine
    from src.inference.loading import check_network, load_model
    from src.inference.media import plural
    from src.report.tables import table
    from src.runtime import setup

    folder = locate(args.checkpoint)
    config = load_checkpoint_config(folder, args.settings)
    cli.note_passed_over(config.data.eval_path, args.settings)
    check_network(config)
    output = require_writable(args.output or folder)
    setup(replace(config.runtime, distributed=False), config.seed)
    engine = Engine(*load_model(folder, args.settings))
    found, rows = outliers.measure(engine.encoder, engine.config)
    splits = list(dict.fromkeys(split for row in rows for split in row.beyond))
    cells = [[plural(row.modality), row.fitted, row.limit, *map(row.beyond.get, splits)] for row in rows]
    print(table(cells, ["", "learned from", "limit", *(f"beyond, {split}" for split in splits)]), end="\n\n")
    print(outliers.keep(output, folder, found))


if __name__ == "__main__":
    cli.run(main)
