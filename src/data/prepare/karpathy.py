"""Karpathy's splits of MS COCO, Flickr30k and Flickr8k: dataset_coco.json, dataset_flickr30k.json.

    karpathy --input dataset_coco.json --images coco2014 --output data/coco

COCO's images are in the folders train2014 and val2014 of --images, Flickr's in --images itself. The split restval
becomes train, val becomes dev.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare import translations
from src.data.prepare.common import add_common_arguments, write_dataset
from src.data.prepare.rows import Corpus, Row, check_caption, check_folder, check_name, describe_inputs, read_json
from src.data.prepare.translations import Translations

SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--input", type=user_path, required=True, metavar="FILE", help="JSON file of the splits")
    parser.add_argument(
        "--images",
        type=user_path,
        required=True,
        metavar="DIR",
        help="folder of images (COCO: the one that holds train2014)",
    )
    translations.add_argument(parser, "the sentence's sentid")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    check_folder(args.images, "--images")
    about = describe_inputs("karpathy", [args.input], "--input")
    content = read_json(args.input)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{args.input} is not in the format of Karpathy's splits: it has no list of images")
    chinese = Translations(args.translations)
    rows = chain(chinese.rejected, _rows(content["images"], args.input.name, args.images, chinese))
    total = len(chinese.rejected) + len(content["images"])
    write_dataset(Corpus(rows, total, about, english=True, unused=chinese.unused), args)


def _rows(entries: list[Any], file: str, images: Path, chinese: Translations) -> Iterator[Row]:
    """A row for each image, and a rejected one for each bad sentence."""
    for number, entry in enumerate(entries, 1):
        try:
            key, image, split = _image(entry)
            sentences = entry.get("sentences")
            if not isinstance(sentences, list):
                raise DataError("the image has no list of sentences")
        except DataError as error:
            yield Row(file, number, reason=str(error))
            continue
        captions = []
        for sentence in sentences:
            found = sentence if isinstance(sentence, dict) else {}
            try:
                captions.append((found.get("sentid"), check_caption(found.get("raw"))))
            except DataError as error:
                yield Row(file, number, key, reason=f"sentence {found.get('sentid')}: {error}")
        texts, translated = chinese.apply(captions)
        yield Row(file, number, key, images / image, texts, (), split, translated)


def _image(entry: Any) -> tuple[str, Path, str]:
    """Key, file and split of an image."""
    if not isinstance(entry, dict):
        raise DataError("the entry is not a JSON object")
    name, folder = check_name(entry.get("filename")), entry.get("filepath")
    folder = "" if folder is None else folder
    if not isinstance(folder, str):
        raise DataError("the filepath is not a text")
    if not isinstance(entry.get("split"), str) or entry["split"] not in SPLITS:
        raise DataError(f"the split is none of {', '.join(SPLITS)} ({entry.get('split')!r})")
    return Path(name).stem, Path(folder) / name, SPLITS[entry["split"]]
