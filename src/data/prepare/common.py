"""What the readers share: their options, and the way from rows to a dataset folder."""

import os
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.cli import Arguments, CommandParser, user_path
from src.config import ModelConfig, load_config
from src.data.digests import DigestTable, digest
from src.data.errors import DataError
from src.data.prepare.media import Media
from src.data.prepare.report import Tally
from src.data.prepare.rows import Corpus, Row, check_folder
from src.data.prepare.workers import ordered_map
from src.data.record import Packed
from src.data.writer import DatasetWriter


def add_common_arguments(parser: CommandParser) -> None:
    parser.add_argument("--output", type=user_path, required=True, help="dataset folder to write")
    parser.add_argument("--dev-share", type=float, default=0.05, help="share of the images without a split for dev")
    parser.add_argument("--test-share", type=float, default=0.05, help="... for test; the rest is train")
    parser.add_argument("--max-side", type=int, default=512, help="larger images are stored smaller, in pixels")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of bad rows that fails the whole")
    parser.add_argument("--config", type=user_path, help="YAML file whose model says how audio and regions are stored")
    parser.add_argument("--shard-records", type=int, default=10000, help="records of a shard file")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read media")
    parser.add_argument("--resume", action="store_true", help="keep the finished shards of a run that was cut short")


def add_file_arguments(parser: CommandParser, annotations: str) -> None:
    """Options of corpora that come as annotation files with a folder of images each."""
    parser.add_argument(
        "--annotations", type=user_path, action="append", required=True, help=f"{annotations}; repeatable"
    )
    parser.add_argument("--images", type=user_path, action="append", required=True, help="its folder of images")
    parser.add_argument("--split", action="append", help="its split (default: by hash of the image)")


def file_groups(args: Arguments) -> list[tuple[Path, Path, str | None]]:
    """Annotation files, each with its images and its split."""
    count = len(args.annotations)
    splits = args.split or [None] * count
    if len(args.images) != count or len(splits) != count:
        raise DataError("give one --images (and one --split, or none at all) for each --annotations")
    for split in args.split or ():
        check_split(split)
    return [
        (path, check_folder(images, "--images"), split)
        for path, images, split in zip(args.annotations, args.images, splits, strict=True)
    ]


def check_split(split: Any) -> str:
    """Raises DataError unless the split can name files."""
    if not isinstance(split, str) or not re.fullmatch(r"[\w-]+", split):
        raise DataError("the split is not a name of letters, digits, _ and -")
    return split


def write_dataset(corpus: Corpus, args: Arguments) -> None:
    """Reads the rows' media, writes the dataset folder and prints its counts.

    Bad rows go to rejected.jsonl in the folder. Too many of them are an error, and the folder stays unfinished.
    """
    _check_arguments(args)
    model = load_config(args.config).model if args.config else ModelConfig()
    about = {name: getattr(args, name) for name in ("dev_share", "test_share", "max_side")}
    about = {**corpus.about, **about}
    rejected = args.output / "rejected.jsonl"
    with (
        DatasetWriter(args.output, model.audio, about, args.shard_records, args.resume) as writer,
        Tally(rejected, corpus.english) as tally,
    ):
        results = _results(writer, corpus.rows, Media(model, args.max_side), args.workers)
        seen = DigestTable()
        for number, row, result in tqdm(results, total=corpus.total, unit=" rows", mininterval=0.5, dynamic_ncols=True):
            if not row.reason and seen.setdefault(_key_digest(row), number) != number:
                result = f"{row.key!r}: the id has been used before"
            if isinstance(result, str):
                tally.reject(row, result)
            else:
                wanted, split = _store(writer, number, row, result, args)
                tally.store(row, moved=wanted != split)
        tally.check(args.max_bad, args.output)
        writer.about.update(tally.about())
    tally.print(args.output)


def _check_arguments(args: Arguments) -> None:
    if args.dev_share < 0 or args.test_share < 0 or args.dev_share + args.test_share >= 1:
        raise DataError("--dev-share and --test-share must not be negative and must leave something for train")
    for name in ("max_side", "workers", "shard_records"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= args.max_bad <= 1:
        raise DataError("--max-bad is a share from 0 to 1")


def _results(
    writer: DatasetWriter, rows: Iterator[Row], media: Media, workers: int
) -> Iterator[tuple[int, Row, Packed | str | None]]:
    """Numbered rows in their order, with their records, the reasons why there are none, or None for finished ones."""
    waiting: deque[tuple[int, Row]] = deque()

    def unread() -> Iterator[Row | None]:
        for number, row in enumerate(rows):
            waiting.append((number, row))
            yield None if writer.is_finished(number) else row

    try:
        for result in ordered_map(media.read_all, unread(), workers):
            yield *waiting.popleft(), result
    except BrokenProcessPool:
        row = waiting[0][1]
        raise DataError(
            f"a worker died at {row.file}:{row.line} or soon after, killed or out of memory: "
            "take fewer --workers and go on with --resume"
        ) from None


def _store(writer: DatasetWriter, number: int, row: Row, packed: Packed | None, args: Arguments) -> tuple[str, str]:
    """Adds the record, or counts in one that is finished; returns the split that was wanted and the split it is in.

    An image is in one split only: a row whose image is in another split already goes there, too.
    """
    finished = writer.take_finished(number) if packed is None else None
    image = finished[1] if finished else packed.image
    wanted = row.split or split_by_digest(image or _key_digest(row), args.dev_share, args.test_share)
    if finished:
        return wanted, finished[0]
    split = (writer.split_of(image) if image else None) or wanted
    writer.add_packed(split, packed, number)
    return wanted, split


def _key_digest(row: Row) -> int:
    return digest(row.key.encode("utf-8", "surrogatepass"))


def split_by_digest(content: int, dev_share: float, test_share: float) -> str:
    """A split that depends on the content only: it stays when rows are added or files renamed."""
    place = content / 2**64
    if place < dev_share:
        return "dev"
    return "test" if place < dev_share + test_share else "train"
