"""The options of eval.py."""

import argparse
from pathlib import Path


def parse(description: str) -> argparse.Namespace:
    """What the command was asked; what contradicts itself ends it with one line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="run or checkpoint folder, pretrained/…")
    parser.add_argument("--config", metavar="FILE", help="configuration to use instead of the checkpoint's own")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where results go (default: in the run folder)")
    parser.add_argument("--split", default="", help="split of the dataset (default: eval.split)")
    parser.add_argument("--query", metavar="TEXT|PICTURE|SOUND", help="what to look for in --gallery or --index")
    parser.add_argument("--gallery", metavar="DIR", type=Path, help="folder of images, audio clips and .txt files")
    parser.add_argument("--index", metavar="FILE", type=Path, help="the gallery as --save-index kept it")
    parser.add_argument("--save-index", metavar="FILE", type=Path, help="keep the gallery's embeddings")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="how many --query shows (default: 5)")
    parser.add_argument("--input", metavar="PICTURE|SOUND|DIR", type=Path, help="what to describe")
    parser.add_argument("--seen", metavar="PICTURE", type=Path, help="image that belongs to the audio clips of --input")
    parser.add_argument("--draw", metavar="TEXT|SOUND", help="what to draw")
    parser.add_argument(
        "--draw-samples", type=int, metavar="N", help="how often (default: eval.image_generation.samples)"
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration")
    args = parser.parse_intermixed_args()
    searches = args.gallery is not None or args.index is not None
    if searches != (args.query is not None or args.save_index is not None):
        parser.error("--query or --save-index goes together with --gallery or --index")
    if searches + (args.input is not None) + (args.draw is not None) > 1:
        parser.error("--query, --input and --draw exclude each other")
    if args.seen is not None and args.input is None:
        parser.error("--seen goes with --input")
    if args.draw_samples is not None and (args.draw is None or args.draw_samples < 1):
        parser.error("--draw-samples goes with --draw and must be at least 1")
    if args.top < 1:
        parser.error("--top must be at least 1")
    return args
