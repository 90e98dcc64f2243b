"""What the readers share: media to records, splits, the list of rejected rows, the counts at the end."""

import argparse
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from src.config import ModelConfig, load_config
from src.data.audio import read_sound
from src.data.errors import DataError
from src.data.image import open_rgb
from src.data.regions import load_regions
from src.data.schema import MODALITIES
from src.data.store import DatasetWriter, Record, read_info

JPEG_QUALITY = 95
ROWS_AHEAD = 64  # rows whose media are read together; bounds the memory


@dataclass(frozen=True)
class Row:
    """One picture with captions and sounds, not yet read; or the reason why there is none."""

    file: str
    line: int  # of a manifest; position in the list of a JSON file, from 1
    key: str = ""
    image: Path | None = None
    captions: tuple[str, ...] = ()
    sounds: tuple[Path | None, ...] = ()
    split: str | None = None  # None: by hash
    reason: str = ""
    regions: Path | None = None  # what a detector found in the picture


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="dataset folder to write")
    parser.add_argument("--dev-share", type=float, default=0.05, help="share of the pictures without a split for dev")
    parser.add_argument("--test-share", type=float, default=0.05, help="... for test; the rest is train")
    parser.add_argument("--max-side", type=int, default=512, help="larger pictures are stored smaller, in pixels")
    parser.add_argument("--max-bad", type=float, default=0.01, help="share of bad rows that fails the whole")
    parser.add_argument("--config", type=Path, help="YAML file whose model says how sound and regions are stored")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that read media")


def write_dataset(rows: Iterable[Row], total: int, args: argparse.Namespace, about: dict[str, Any]) -> None:
    """Reads the rows' media, writes the dataset folder and prints its counts.

    Bad rows go to rejected.jsonl in the folder. Too many of them are an error, and the folder stays unfinished.
    """
    _check_arguments(args)
    model = load_config(args.config).model if args.config else ModelConfig()
    rejected = args.output / "rejected.jsonl"
    with DatasetWriter(args.output, model.audio, about) as writer, rejected.open("w", encoding="utf-8") as log:
        bad, first = 0, ""
        for row, result in tqdm(_read_all(rows, model, args), total=total, unit=" rows", mininterval=0.5):
            reason = result if isinstance(result, str) else _store(writer, row, result, args)
            if reason:
                bad, first = bad + 1, first or f"{row.file}:{row.line}: {reason}"
                entry = {"file": row.file, "line": row.line, "id": row.key, "reason": reason}
                log.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if bad > args.max_bad * max(total, 1):
            log.flush()
            raise DataError(
                f"{bad} of {total} rows are bad, more than --max-bad {args.max_bad} allows; "
                f"{rejected} lists them, the first is {first}"
            )
        if bad == total:
            raise DataError(f"there are no rows to write to {args.output}")
    if not bad:
        rejected.unlink()
    _print_counts(args.output, bad, rejected)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.dev_share < 0 or args.test_share < 0 or args.dev_share + args.test_share >= 1:
        raise DataError("--dev-share and --test-share must not be negative and must leave something for train")
    if args.max_side < 1 or args.workers < 1:
        raise DataError("--max-side and --workers must be at least 1")
    if not 0 <= args.max_bad <= 1:
        raise DataError("--max-bad is a share from 0 to 1")


def _read_all(
    rows: Iterable[Row], model: ModelConfig, args: argparse.Namespace
) -> Iterator[tuple[Row, Record | str]]:
    """Rows in their order with their records, or with the reason why there is none."""

    def read(row: Row) -> Record | str:
        if row.reason:
            return row.reason
        try:
            return read_row(row, model, args.max_side)
        except DataError as error:
            return str(error)

    remaining, seen = iter(rows), set()
    with ThreadPoolExecutor(args.workers) as workers:
        while chunk := list(islice(remaining, ROWS_AHEAD)):
            for row, result in zip(chunk, workers.map(read, chunk), strict=True):
                if row.key in seen and not row.reason:
                    result = f"the id {row.key!r} has been used before"
                elif not row.reason:
                    seen.add(row.key)
                yield row, result


def read_row(row: Row, model: ModelConfig, max_side: int) -> Record:
    """The row's media as a record, in the form in which the model's encoders read them."""
    image = None if row.image is None else pack_image(row.image, max_side)
    regions = None if row.regions is None else load_regions(row.regions, model.image.region_dim)
    sounds = tuple(None if path is None else read_sound(path, model.audio) for path in row.sounds)
    return Record(row.key, image, row.captions, sounds, regions)


def pack_image(path: Path, max_side: int) -> bytes:
    """A picture file's bytes once it is known to decode; a larger one is re-encoded, as JPEG if it was one, or PNG."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        raise DataError(f"{path}: no such picture file") from None
    image = open_rgb(data, str(path))
    if max(image.size) <= max_side:
        return data
    kind = "JPEG" if data.startswith(b"\xff\xd8") else "PNG"
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    image.info.clear()  # rotation is applied and colour profiles no longer hold
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue()


def _store(writer: DatasetWriter, row: Row, record: Record, args: argparse.Namespace) -> str:
    """Adds the record; returns the reason if it cannot be stored."""
    picture = row.image or row.regions
    name = picture.name if picture else row.key  # not the whole path: the split stays when the folder moves
    split = row.split or split_by_hash(name, args.dev_share, args.test_share)
    try:
        writer.add(split, record)
    except DataError as error:
        return str(error)
    return ""


def split_by_hash(name: str, dev_share: float, test_share: float) -> str:
    """A split that depends on the name only: it stays when rows are added, and a picture is in one split only."""
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    if place < dev_share:
        return "dev"
    return "test" if place < dev_share + test_share else "train"


def check_captions(captions: Any) -> tuple[str, ...]:
    """A caption or a list of them, as a tuple; raises DataError for anything else or for an empty one."""
    listed = [captions] if isinstance(captions, str) else captions
    if not isinstance(listed, list) or not all(isinstance(caption, str) for caption in listed):
        raise DataError("the captions are neither a text nor a list of texts")
    if not all(caption.strip() for caption in listed):
        raise DataError("a caption is empty")
    return tuple(caption.strip() for caption in listed)


def guard(make: Callable[[], Row], file: str, line: int, key: str = "") -> Row:
    """The row that ``make`` returns, or a rejected one with the DataError's message."""
    try:
        return make()
    except DataError as error:
        return Row(file, line, key, reason=str(error))


def _print_counts(folder: Path, bad: int, rejected: Path) -> None:
    columns = ("records", "samples", "pictures", *MODALITIES, "regions")
    print(f"{'split':12}" + "".join(f"{name:>10}" for name in columns))
    for split, entry in read_info(folder)["splits"].items():
        print(f"{split:12}" + "".join(f"{entry[name]:10}" for name in columns))
    print(f"rejected rows: {bad}" + (f", listed in {rejected}" if bad else ""))
