"""The Chinese characters of a page as a font inside it, for machines that have none.

It stands before the machine's own: a browser may keep the boxes that it drew while a font that stands last was loading.
"""

import io

from src.report.html import data_uri
from src.report.page import FONT

FIRST = 0x2E80  # of the East Asian scripts; what comes before every machine can show
RANGE = "U+2E80-FFFF, U+20000-3FFFF"  # without the space, whose font would set the height of all lines
FAMILY = "Report Han"  # as report.css names it


def font_face(text: str) -> str:
    """A rule of CSS with the glyphs of those characters, about 60 bytes each; empty where the text has none."""
    wanted = "".join(sorted({character for character in text if ord(character) >= FIRST}))
    if not wanted:
        return ""
    from fontTools import subset  # comes with matplotlib

    options = subset.Options(flavor="woff", layout_features=[], name_IDs=[], ignore_missing_unicodes=True)
    font = subset.load_font(str(FONT), options)
    cutter = subset.Subsetter(options)
    cutter.populate(text=wanted)
    cutter.subset(font)
    file = io.BytesIO()
    subset.save_font(font, file, options)
    source = f'src: url({data_uri("font/woff", file.getvalue())}) format("woff")'
    return f'@font-face {{ font-family: "{FAMILY}"; unicode-range: {RANGE}; {source}; }}\n'
