"""python -m src.data.prepare READER …: media and annotations to a dataset folder."""

import argparse
import importlib
import sys

from src import cli

READERS = {
    "demo": "emoji scenes, captions and speech, drawn from a seed",
    "manifest": "your own rows of a manifest.jsonl",
    "coco": "captions in the JSON format of MS COCO",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.data.prepare", description="Makes a dataset folder.")
    readers = parser.add_subparsers(dest="reader", metavar="READER", required=True)
    modules = {}
    for name, purpose in READERS.items():
        reader = readers.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        if name in sys.argv[1:2]:  # the others' imports are not needed
            modules[name] = importlib.import_module(f"src.data.prepare.{name}")
            modules[name].add_arguments(reader)
    args = parser.parse_args()
    modules[args.reader].run(args)


if __name__ == "__main__":
    cli.run(main)
