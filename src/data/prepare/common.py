"""What all corpora share: their options, and the way from rows to a dataset folder."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.cli import Arguments, CommandParser, cores, user_path
from src.config import load_config
from src.data.digests import DigestTable, digest
from src.data.errors import DataError
from src.data.prepare.media import Media
from src.data.prepare.report import Tally
from src.data.prepare.rows import Corpus, Row, check_folder, describe_files
from src.data.prepare.workers import ordered_map
from src.data.record import Packed
from src.data.writer import REJECTED, DatasetWriter

SPLITS = ("train", "dev", "test")
UNMOVED = "only rows that were rejected may change before --resume, and none may move or go; or begin without --resume"
SPLIT_NAMES = dict.fromkeys(("val", "valid", "validation"), "dev")  # what other projects call them


def add_common_arguments(parser: CommandParser) -> None:
    parser.add_argument("--output", type=user_path, required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument(
        "--dev-share",
        type=float,
        default=0.05,
        metavar="X",
        help="share of images without a split that go to dev (0.05)",
    )
    parser.add_argument(
        "--test-share", type=float, default=0.05, metavar="X", help="… that go to test (0.05); the rest is train"
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=512,
        metavar="N",
        help="pixels of the longer side; larger images are made smaller (512)",
    )
    parser.add_argument(
        "--max-bad", type=float, default=0.01, metavar="X", help="fail if the share of bad rows is larger (0.01)"
    )
    parser.add_argument("--shard-records", type=int, default=10000, metavar="N", help="records a shard file (10000)")
    parser.add_argument(
        "--workers", type=int, default=cores(), metavar="N", help="processes that read media (all cores)"
    )
    parser.add_argument("--resume", action="store_true", help="keep the finished shards of an interrupted run")
    parser.add_storage_settings()


def add_file_arguments(parser: CommandParser, annotations: str) -> None:
    """Options of corpora that consist of annotation files, each with a folder of images."""
    parser.add_argument(
        "--annotations",
        type=user_path,
        action="append",
        required=True,
        metavar="FILE",
        help=f"{annotations}; repeatable",
    )
    parser.add_argument(
        "--images", type=user_path, action="append", required=True, metavar="DIR", help="folder of its images"
    )
    add_split(parser, "the image")


def add_split(parser: CommandParser, hashed: str) -> None:
    """Adds ``--split``, once for each input or never.

    Args:
        hashed: what the split depends on where none is given.
    """
    text = f"its split: train, dev (or val), test; default: by hash of {hashed}"
    parser.add_argument("--split", action="append", metavar="NAME", help=text)


def file_groups(args: Arguments) -> list[tuple[Path, Path, str | None]]:
    """Annotation files, each with its images and its split.

    Raises:
        DataError: their numbers differ, a folder is missing, or there is no such split.
    """
    check_one_each(args, "annotations", "images")
    folders = [check_folder(images, "--images") for images in args.images]
    return list(zip(args.annotations, folders, splits_of(args, "annotations"), strict=True))


def splits_of(args: Arguments, inputs: str) -> list[str | None]:
    """The split of each input; None where none is given.

    Args:
        inputs: the option whose values they are of.

    Raises:
        DataError: their numbers differ, or there is no such split.
    """
    if not args.split:
        return [None] * len(getattr(args, inputs))
    check_one_each(args, inputs, "split", ", or none at all")
    return list(map(check_split, args.split))


def check_one_each(args: Arguments, inputs: str, option: str, otherwise: str = "") -> None:
    """Raises DataError unless one repeatable option stands as often as another."""
    wanted, found = len(getattr(args, inputs)), len(getattr(args, option))
    if wanted != found:
        raise DataError(f"{wanted} --{inputs} but {found} --{option}: give one for each{otherwise}")


def check_split(split: Any) -> str:
    """The name of a split as datasets have it; raises DataError for another one, which no configuration would read."""
    name = SPLIT_NAMES.get(split, split) if isinstance(split, str) else split
    if name not in SPLITS:
        raise DataError(f"the split {split!r} is none of {', '.join(SPLITS)} ({', '.join(SPLIT_NAMES)} are dev)")
    return name


def write_dataset(corpus: Corpus, args: Arguments) -> None:
    """Reads the media of the rows, writes the dataset folder and prints its counts.

    Bad rows are listed in rejected.jsonl of the folder. Too many of them are an error, and the folder stays unfinished.
    """
    _check_arguments(args)
    model = load_config(args.config, args.settings).model
    about = {**corpus.about, **_describe_options(args)}
    rejected = args.output / REJECTED
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
        tally.unused = corpus.unused()
        writer.about.update(tally.about())
    tally.print(args.output)


def _describe_options(args: Arguments) -> dict[str, Any]:
    """What of a command's options tells what the rows become, for dataset.json: --resume takes them all again."""
    about = {name: getattr(args, name) for name in ("dev_share", "test_share", "max_side")}
    if getattr(args, "split", None):
        about["splits"] = list(map(check_split, args.split))
    if getattr(args, "translations", None):
        about["translations"] = describe_files([args.translations], "--translations")
    return about


def _check_arguments(args: Arguments) -> None:
    if not (args.dev_share >= 0 and args.test_share >= 0 and args.dev_share + args.test_share < 1):  # nor NaN
        raise DataError("--dev-share and --test-share must not be negative, and their sum must be below 1")
    for name in ("max_side", "workers", "shard_records"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= args.max_bad <= 1:
        raise DataError("--max-bad must be between 0 and 1")


def _results(
    writer: DatasetWriter, rows: Iterator[Row], media: Media, workers: int
) -> Iterator[tuple[int, Row, Packed | str | None]]:
    """Numbered rows in their order, each with its record, the reason why there is none, or None if it is finished."""
    waiting: deque[tuple[int, Row]] = deque()

    def unread() -> Iterator[Row | None]:
        number = -1
        for number, row in enumerate(rows):
            finished = writer.is_finished(number)
            if finished and not writer.says_the_same(number, row.said()):
                raise DataError(f"{row.file}:{row.line} is not what a finished shard holds of that row: {UNMOVED}")
            waiting.append((number, row))
            yield None if finished else row
        if number + 1 < writer.rows_finished:
            raise DataError(f"the input has {number + 1:,} rows, finished shards hold later ones: {UNMOVED}")

    try:
        for result in ordered_map(media.read_all, unread(), workers):
            yield *waiting.popleft(), result
    except BrokenProcessPool:
        row = waiting[0][1]
        raise DataError(
            f"a worker process died at or after {row.file}:{row.line}, killed or out of memory: "
            "use fewer --workers and continue with --resume"
        ) from None


def _store(writer: DatasetWriter, number: int, row: Row, packed: Packed | None, args: Arguments) -> tuple[str, str]:
    """Adds the record, or counts a finished one; returns the split that was wanted and the one that it is in.

    An image is in one split only: a row whose image is already in another split is moved there.
    """
    finished = writer.finished(number) if packed is None else None
    source = finished[1] if finished else packed.source
    wanted = row.split or split_by_digest(source or _key_digest(row), args.dev_share, args.test_share)
    if finished:
        return wanted, finished[0]
    split = (writer.split_of(packed.image) if packed.image else None) or wanted
    writer.add_packed(split, packed, number, row.said())
    return wanted, split


def _key_digest(row: Row) -> int:
    return digest(row.key.encode("utf-8", "surrogatepass"))


def split_by_digest(content: int, dev_share: float, test_share: float) -> str:
    """A split that depends on the content only: it does not change when rows are added or files renamed."""
    place = content / 2**64
    if place < dev_share:
        return "dev"
    return "test" if place < dev_share + test_share else "train"
