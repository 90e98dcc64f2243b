"""Localized Narratives: spoken descriptions of images, with their transcripts (JSONL) and recordings (.ogg).

    localized-narratives --annotations open_images_train_v6_localized_narratives-00000-of-00010.jsonl \\
                         --images open-images/train --split train --recordings voice-recordings --output data/narratives

A recording is searched at --recordings/PATH, where PATH is the row's field voice_recording, and then by its file name
alone. Without --recordings only the text is read. A narrative lasts half a minute; a model hears its beginning only:
--pieces SECONDS cuts it, at ends of utterances in its timed_caption, into captions with their own audio. Image names
differ between the image sets: for MS COCO they are --name "{image_id:0>12}.jpg".
"""

import functools
import math
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from src.cli import Arguments, CommandParser, user_path
from src.data.errors import DataError
from src.data.prepare import translations
from src.data.prepare.common import add_common_arguments, add_file_arguments, file_groups, write_dataset
from src.data.prepare.rows import (
    Clip,
    Corpus,
    Row,
    check_caption,
    check_folder,
    count_lines,
    describe_inputs,
    guard,
    read_objects,
)
from src.data.prepare.translations import Translations

TIMED = ("utterance", "start_time", "end_time")


def add_arguments(parser: CommandParser) -> None:
    add_file_arguments(parser, "narratives, JSONL")
    parser.add_argument(
        "--name",
        default="{image_id}.jpg",
        metavar="PATTERN",
        help="an image's path by its image_id (default: %(default)s)",
    )
    parser.add_argument("--recordings", type=user_path, metavar="DIR", help="folder of recordings (default: text only)")
    parser.add_argument(
        "--pieces", type=float, metavar="SECONDS", help="cut narratives into captions of at most so many seconds"
    )
    translations.add_argument(parser, "image_id/annotator_id; with --pieces also /0, /1, ...")
    add_common_arguments(parser)


def run(args: Arguments) -> None:
    groups = file_groups(args)
    about = describe_inputs("localized-narratives", args.annotations, "--annotations")
    about |= {"name": args.name, "recordings": args.recordings is not None, "pieces": args.pieces}
    if args.pieces is not None and not args.pieces > 0:
        raise DataError("--pieces must be more than 0 seconds")
    if args.recordings:
        check_folder(args.recordings, "--recordings")
    try:
        if args.name.format(image_id="1") == args.name.format(image_id="2"):
            raise DataError(f"--name {args.name}: it must contain the image, as in {{image_id}}.jpg")
    except (KeyError, IndexError, ValueError, AttributeError):
        raise DataError(f"--name {args.name}: only {{image_id}} can be replaced in it") from None
    chinese = Translations(args.translations)
    rows = [_Narratives(*group, args, chinese) for group in groups]
    total = len(chinese.rejected) + count_lines(args.annotations)
    corpus = Corpus(chain(chinese.rejected, *rows), total, about, english=True, unused=chinese.unused)
    write_dataset(corpus, args)


class _Narratives:
    """The rows of one file, one a line."""

    def __init__(self, path: Path, images: Path, split: str | None, args: Arguments, chinese: Translations) -> None:
        self.path, self.images, self.split, self.chinese = path, images, split, chinese
        self.name, self.recordings, self.pieces = args.name, args.recordings, args.pieces

    def __iter__(self) -> Iterator[Row]:
        for number, entry in read_objects(self.path):
            if isinstance(entry, Row):
                yield entry
            else:
                yield guard(functools.partial(self._row, number, entry), self.path.name, number, _key(entry))

    def _row(self, number: int, entry: dict[str, Any]) -> Row:
        if not _key(entry):
            raise DataError("the image_id or the annotator_id is missing, or neither a text nor a whole number")
        image = self.images / self.name.format(image_id=str(entry["image_id"]))
        recording = None if self.recordings is None else self._recording(entry.get("voice_recording"))
        if self.pieces is None:
            text, translated = self.chinese(_key(entry), check_caption(entry.get("caption")))
            captions, clips = (text,), (recording,)
        else:
            pieces = cut(entry.get("timed_caption"), self.pieces)
            texts = [(f"{_key(entry)}/{number}", text) for number, (text, _, _) in enumerate(pieces)]
            captions, translated = self.chinese.apply(texts)
            clips = tuple(recording and Clip(recording, start, end - start) for _, start, end in pieces)
        return Row(self.path.name, number, _key(entry), image, captions, clips, self.split, translated)

    def _recording(self, path: Any) -> Path:
        if not isinstance(path, str) or not path:
            raise DataError("the voice_recording is not a path")
        whole = self.recordings / path
        return whole if os.path.isfile(whole) else self.recordings / whole.name


def _key(entry: dict[str, Any]) -> str:
    parts = [entry.get("image_id"), entry.get("annotator_id")]
    return "/".join(map(str, parts)) if all(isinstance(part, (str, int)) and str(part) for part in parts) else ""


def cut(timed: Any, longest: float) -> list[tuple[str, float, float]]:
    """The utterances of a timed caption, joined to pieces of at most ``longest`` seconds; a longer one stays as it is.

    Utterances without text are passed over, as silence is.

    Returns:
        text, start and end of each piece.
    """
    if not isinstance(timed, list) or not timed:
        raise DataError("the timed_caption is not a list of utterances")
    pieces: list[tuple[str, float, float]] = []
    for entry in timed:
        text, start, end = (entry.get(key) for key in TIMED) if isinstance(entry, dict) else (None, None, None)
        numbers = all(isinstance(time, (int, float)) and math.isfinite(time) for time in (start, end))
        if not isinstance(text, str) or not numbers or not 0 <= start <= end:
            raise DataError(f"an utterance of the timed_caption lacks {TIMED[0]}, or its times are not in order")
        if not text.strip():
            continue
        if pieces and end - pieces[-1][1] <= longest:
            pieces[-1] = (f"{pieces[-1][0]} {text.strip()}", pieces[-1][1], max(pieces[-1][2], end))
        else:
            pieces.append((text.strip(), start, end))
    if not pieces:
        raise DataError("no utterance of the timed_caption has a text")
    return [(check_caption(text), start, end) for text, start, end in pieces]
