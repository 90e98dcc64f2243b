"""Measures a model's frozen features by a linear probe: a logistic regression from features to labels.

python tools/linear_probe.py --checkpoint opt_demo data.path=runs/demo_full/data      the demo's labels: its objects
python tools/linear_probe.py --checkpoint runs/mine --labels labels.csv               labels by the id of a record
python tools/linear_probe.py --checkpoint runs/mine --input FOLDER --given image      a folder for each class, or a CSV

Of a dataset every choice of its modalities is measured: text, image, audio and what stands together, seven of three.
The regression is fitted to the training split, its regularisation chosen on dev, and the table is of the test split.
Beside the model stand the same network with random weights, the inputs without any network, and chance.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli

AGAINST = ("untrained+raw", "untrained", "raw", "none")


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    path, number = {"type": cli.user_path}, {"type": int, "metavar": "N"}
    parser.add_argument("--checkpoint", default="opt_demo", **path, metavar="DIR", help="default: the bundled one")
    parser.add_argument("--config", **path, metavar="FILE", help="configuration to use instead of the checkpoint's own")
    labels = {"action": "append", "default": [], "metavar": "CSV"}
    parser.add_argument("--labels", **path, **labels, help="id,label of records, or Open Images' labels; repeatable")
    parser.add_argument("--names", **path, metavar="CSV", help="label,name: only these labels count")
    parser.add_argument("--input", **path, metavar="PATH", help="labelled files in place of a dataset")
    parser.add_argument("--given", metavar="KINDS", help="text+image+audio, or some (default: all; of --input image)")
    parser.add_argument("--items", default=8000, **number, help="training items at most; 0: all (default: 8000)")
    parser.add_argument("--min-items", default=1, **number, help="a label needs so many training items (default: 1)")
    parser.add_argument("--against", default="untrained+raw", choices=AGAINST, help="what stands beside the model")
    parser.add_argument("--output", **path, metavar="DIR", help="folder of table and plot (default: in the run folder)")
    parser.add_ema()
    parser.add_settings()
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    # not before: they import MindSpore, for which --help need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.places import locate, results_folder, weights_suffix
    from src.evaluation import linear_probe
    from src.evaluation.probe_data import read_data
    from src.files import require_writable
    from src.inference.engine import Engine
    from src.inference.loading import check_network, load_model
    from src.runtime import setup

    folder = locate(args.checkpoint, args.ema)
    config = load_checkpoint_config(folder, args.settings, args.config)
    cli.note_passed_over(config.data.eval_path, args.settings)
    check_network(config)
    data = read_data(config, args.input, args.given, args.labels, args.names, args.items, args.min_items)
    given = data.modalities if args.given else ()
    name = linear_probe.results_name(load_checkpoint_config(folder), config, args.input, args.labels, given)
    name += weights_suffix(folder, args.ema)
    output = require_writable(args.output or results_folder(folder) / name)
    setup(replace(config.runtime, distributed=False), config.seed)
    engine = Engine(*load_model(folder, args.settings, args.config, args.ema), ema=args.ema)
    found = linear_probe.LinearProbe(engine, data, args.against.split("+")).run(folder)
    print(linear_probe.summary(found), end="\n\n")
    print(*linear_probe.write(found, output), sep="\n")


if __name__ == "__main__":
    cli.run(main)
