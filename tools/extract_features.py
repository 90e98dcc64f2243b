"""Extracts features of a manifest's images and audio clips with trained encoders, for models that read features.

python tools/extract_features.py --input manifest.jsonl --checkpoint runs/mine --output data/features
python tools/extract_features.py --input manifest.jsonl --config mine.yaml --output data/features   by its init_from

The output folder gets an image's patches as regions in regions/….npz, an audio clip's tokens in audio/….npy, and
manifest.jsonl, which names them. An interrupted call goes on when it is repeated; images and clips that have changed
since are read again, those of another folder are refused. Calls with --only share a folder and its manifest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    path = {"type": cli.user_path}
    parser.add_argument("--input", required=True, **path, metavar="FILE", help="manifest.jsonl, one JSON object a line")
    parser.add_argument("--media", **path, metavar="DIR", help="folder that its paths start from (default: its own)")
    parser.add_argument("--output", required=True, **path, metavar="DIR", help="folder of features, new or begun")
    encoders = parser.add_mutually_exclusive_group(required=True)
    encoders.add_argument("--checkpoint", **path, metavar="DIR", help="run or checkpoint folder of the encoders")
    encoders.add_argument("--config", **path, metavar="FILE", help="configuration with init_from of ViT, wav2vec 2.0")
    parser.add_argument(
        "--only", choices=("image", "audio"), help="images or audio clips (default: what the encoders read)"
    )
    parser.add_ema()
    parser.add_settings()
    args = parser.parse_intermixed_args()
    if args.ema and not args.checkpoint:
        parser.error("--ema goes with --checkpoint")
    # not before: they import MindSpore, for which --help and mistakes in the arguments need not wait
    from src.inference.features import extract_features

    extract_features(
        args.input, args.output, args.checkpoint, args.config, args.media, args.only, args.settings, args.ema
    )


if __name__ == "__main__":
    cli.run(main)
