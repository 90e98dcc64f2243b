"""python -m src.data.prepare CORPUS …: media and annotations to a dataset folder."""

import argparse
import importlib
import sys

from src import cli

CORPORA: dict[str, str] = {}  # name on the command line → what it is; its module has the same name, with _ for -


def register(name: str, purpose: str) -> None:
    """Makes a corpus known; a name that is taken is an error."""
    if name in CORPORA:
        raise ValueError(f"corpus {name!r} is registered twice")
    CORPORA[name] = purpose


register("demo", "emoji scenes, captions and speech, drawn from a seed")
register("manifest", "your own rows of a manifest.jsonl")
register("coco", "MS COCO captions, the official annotations")
register("karpathy", "MS COCO or Flickr30k in Karpathy's splits")
register("coco-cn", "COCO-CN: Chinese captions of MS COCO images")
register("flickr30k-cn", "Flickr30k-CN: Chinese captions of Flickr30k")
register("aic", "AI Challenger's Chinese captions")
register("cc3m", "Conceptual Captions: a TSV and downloaded images")
register("localized-narratives", "Localized Narratives: spoken captions, with recordings")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.data.prepare", description="Makes a dataset folder.")
    corpora = parser.add_subparsers(dest="corpus", metavar="CORPUS", required=True)
    modules = {}
    for name, purpose in CORPORA.items():
        if name not in sys.argv[1:2]:  # the others' imports are not needed
            corpora.add_parser(name, help=purpose)
            continue
        modules[name] = importlib.import_module(f"src.data.prepare.{name.replace('-', '_')}")
        corpus = corpora.add_parser(
            name,
            help=purpose,
            description=modules[name].__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        modules[name].add_arguments(corpus)
    args = parser.parse_args()
    modules[args.corpus].run(args)


if __name__ == "__main__":
    cli.run(main)
