"""Makes a dataset folder of images, captions and speech: python tools/prepare_data.py CORPUS --output DIR …

python tools/prepare_data.py demo --output runs/demo/data
python tools/prepare_data.py manifest --config config/model/demo.yaml --input manifest.jsonl --output data/mine
python tools/prepare_data.py coco --annotations captions_train.json --images train2017 --split train --output data/coco
python tools/prepare_data.py CORPUS --help                 the files that a corpus consists of, and its options

Audio is stored as model.audio of --config FILE says, which key=value overrides: give what training will read.
Rows that cannot be used are listed in rejected.jsonl of the folder, with the reason.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli

CORPORA = {  # name on the command line → its module and what it is
    "demo": ("src.demo.prepare", "emoji scenes with captions and speech, generated from a seed"),
    "manifest": ("src.data.prepare.manifest", "your own rows of a manifest.jsonl"),
    "coco": ("src.data.prepare.coco", "MS COCO captions, the official annotations"),
    "karpathy": ("src.data.prepare.karpathy", "MS COCO or Flickr30k in Karpathy's splits"),
    "coco-cn": ("src.data.prepare.coco_cn", "COCO-CN: Chinese captions of MS COCO images"),
    "flickr30k-cn": ("src.data.prepare.flickr30k_cn", "Flickr30k-CN: Chinese captions of Flickr30k"),
    "aic": ("src.data.prepare.aic", "AI Challenger's Chinese captions"),
    "cc3m": ("src.data.prepare.cc3m", "Conceptual Captions: a TSV and downloaded images"),
    "questions": ("src.data.prepare.questions", "your own questions about images, with answers, of a questions.jsonl"),
    "vqa2": ("src.data.prepare.vqa2", "VQA v2: questions about MS COCO images, ten answers each"),
    "localized-narratives": (
        "src.data.prepare.localized_narratives",
        "Localized Narratives: spoken captions, with recordings",
    ),
    "speech": ("src.data.prepare.speech", "your own recordings with their transcripts, without images"),
    "librispeech": ("src.data.prepare.librispeech", "LibriSpeech: read English"),
    "aishell": ("src.data.prepare.aishell", "AISHELL-1: read Mandarin"),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in CORPORA:
        corpus = importlib.import_module(CORPORA[name][0])  # the imports of the other corpora are not needed
        parser = cli.CommandParser(prog=f"{Path(sys.argv[0]).name} {name}", description=corpus.__doc__)
        corpus.add_arguments(parser)
        # a parser of its own: subparsers do not take key=value between options
        corpus.run(parser.parse_intermixed_args(sys.argv[2:]))
        return
    parser = cli.CommandParser(description=__doc__)
    corpora = parser.add_subparsers(metavar="CORPUS", required=True)
    for corpus_name, (_, purpose) in CORPORA.items():
        corpora.add_parser(corpus_name, help=purpose)
    parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
