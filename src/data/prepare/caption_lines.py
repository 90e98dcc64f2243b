"""Text files of captions, one a line: the image's name, optionally #number, white space, the caption."""

import re
from collections.abc import Iterator
from pathlib import Path

from src.data.errors import DataError
from src.data.prepare.rows import Row, check_caption, read_lines

WORD_CLASS = re.compile(r":[A-Za-z]+$")


def read_captions(path: Path, segmented: bool = False) -> Iterator[tuple[int, str, str] | Row]:
    """Line number, image and caption of each line; a rejected row for any other line.

    A suffix such as ``#zhm#0`` and ``.jpg`` are removed from the image's name.
    """
    for number, line in read_lines(path):
        if isinstance(line, Row):
            yield line
            continue
        name, *rest = line.split(None, 1)
        image = name.split("#")[0].removesuffix(".jpg")
        try:
            if not image:
                raise DataError("the line does not begin with the name of an image")
            caption = check_caption(rest[0] if rest else "")
            yield number, image, check_caption(join_words(caption)) if segmented else caption
        except DataError as error:
            yield Row(path.name, number, name, reason=str(error))


def join_words(caption: str) -> str:
    """Joins the words of a segmented caption, with or without word classes (``两个:CD 人:NN``)."""
    return "".join(WORD_CLASS.sub("", word) for word in caption.split())
