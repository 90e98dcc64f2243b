"""Writes a trained model as graphs for deployment, loads them back and compares them with the model; or its weights.

python export.py --checkpoint pretrained/opt_demo
python export.py --checkpoint runs/demo/retrieval --output runs/demo/export --batch-size 8
python export.py --checkpoint runs/demo/pretrain --format WEIGHTS --output shipped

The folder holds a graph a file, export.json (inputs, outputs, differences, checksums, preprocessing), config.yaml and
vocab.txt; the image decoder has no graph. With --format WEIGHTS it holds what eval.py and infer.py read, as pretrained/
does. The first line of config.yaml says which weights were exported: those of the last step, or with --ema their
average, of which outliers.safetensors is to be measured anew.
"""

from dataclasses import replace
from pathlib import Path

from src import cli


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    path = {"type": cli.user_path}
    parser.add_argument("--checkpoint", required=True, **path, metavar="DIR", help="run or checkpoint folder")
    parser.add_argument("--config", **path, metavar="FILE", help="configuration to use instead of the checkpoint's own")
    formats = "AIR needs Ascend; WEIGHTS: no graphs, only the weights, in half precision"
    parser.add_argument("--format", choices=("MINDIR", "AIR", "WEIGHTS"), default="MINDIR", help=formats)
    parser.add_argument("--output", **path, metavar="DIR", default=Path("runs/export"), help="default: runs/export")
    parser.add_argument("--batch-size", type=int, default=0, metavar="N", help="rows of every input; 0: any (default)")
    parser.add_ema()
    parser.add_settings()
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.checkpoints.checkpoint import load_checkpoint_config
    from src.checkpoints.files import REPORT, weights_file
    from src.checkpoints.places import locate
    from src.export.export import ExportError, check_request, export_graphs, export_weights
    from src.inference import outliers
    from src.inference.loading import load_model
    from src.models.opt import count_parameters
    from src.runtime import setup

    folder = locate(args.checkpoint, args.ema)
    # the network is the checkpoint's, with its vocabulary and codes, whichever configuration is used
    config = load_checkpoint_config(folder, args.settings, args.config)
    if config.task == "image_tokenizer":
        raise ExportError(f"{folder} is an image tokenizer: only the other tasks' networks are exported")
    check_request(config.runtime.device, args.output, args.format, args.batch_size)
    # one process, whatever the model was trained on; a file can be loaded back in graph mode only
    setup(replace(config.runtime, distributed=False, mode="graph"), config.seed)
    config, model = load_model(folder, args.settings, args.config, args.ema)
    weights = weights_file(args.ema)
    print(f"{folder / weights}: {count_parameters(model)['total']:,} parameters")
    if args.format == "WEIGHTS":
        usual = None if args.ema else outliers.load(folder)  # measured for the last step's weights
        print(export_weights(config, model, args.output, weights, usual))
        return
    report = export_graphs(config, model, args.output, args.format, args.batch_size, weights)
    for entry in report["graphs"].values():
        compared = f"differs by at most {entry['max_abs_diff']:.1e}" if "max_abs_diff" in entry else "not compared"
        print(f"{args.output / entry['file']}: {compared}")
    if report["without_graph"]:
        print(f"no graph has the {' and the '.join(report['without_graph'])}: infer.py reads --format WEIGHTS")
    print(args.output / REPORT)


if __name__ == "__main__":
    cli.run(main)
