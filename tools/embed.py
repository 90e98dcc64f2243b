"""Writes unit vectors of all texts, images and audio clips of a folder, a file of texts or a manifest.

python tools/embed.py --checkpoint runs/mine --input photos --output vectors.npy
python tools/embed.py --checkpoint runs/mine --input captions.txt --output vectors.npy       a text a line
python tools/embed.py --checkpoint runs/mine --input manifest.jsonl --only image --output vectors.parquet

An .npy holds float32 [rows, numbers]; beside it the .jsonl of the same name says of each row what it is. A .parquet,
which needs pyarrow, holds both. What cannot be read is named and left out. An interrupted call goes on when repeated.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.data.schema import MODALITIES


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    path = {"type": cli.user_path}
    parser.add_argument("--checkpoint", default="opt_demo", **path, metavar="DIR", help="default: the bundled one")
    parser.add_argument("--config", **path, metavar="FILE", help="configuration to use instead of the checkpoint's own")
    parser.add_argument("--input", required=True, **path, metavar="PATH", help="folder, .txt or .jsonl")
    parser.add_argument("--media", **path, metavar="DIR", help="folder that a manifest's paths start from")
    parser.add_argument("--output", required=True, **path, metavar="FILE", help=".npy or .parquet")
    parser.add_argument("--only", choices=MODALITIES, help="texts, images or audio clips (default: all)")
    parser.add_ema()
    parser.add_settings()
    args = parser.parse_intermixed_args()
    # not before: they import MindSpore, for which --help need not wait
    from src.checkpoints.places import locate
    from src.inference import load, vectors

    vectors.check_output(args.output, args.input)
    vectors.read_entries(args.input)  # for its errors, before the model is loaded
    model = load(args.checkpoint, args.settings, args.config, ema=args.ema)
    folder = locate(args.checkpoint, args.ema)
    vectors.embed_input(model, folder, args.input, args.output, media=args.media, only=args.only)


if __name__ == "__main__":
    cli.run(main)
