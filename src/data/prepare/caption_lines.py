"""Text files of captions, a line each: the image's name, perhaps #number, white space, the caption."""

import re
from collections.abc import Iterator
from pathlib import Path

from src.data.errors import DataError
from src.data.prepare.rows import Row, check_caption, read_lines

WORD_CLASS = re.compile(r":[A-Za-z]+$")


def read_captions(path: Path, segmented: bool = False) -> Iterator[tuple[int, str, str] | Row]:
    """Line number, image and caption of each line; a rejected row for a line that is no caption.

    ``#zhm#0`` and the like behind the image's name are left out, and so is ``.jpg``.
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
    """A caption that was cut into words, with or without their classes (``两个:CD 人:NN``), in one piece."""
    return "".join(WORD_CLASS.sub("", word) for word in caption.split())
