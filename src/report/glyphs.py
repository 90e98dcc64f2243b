"""The Chinese characters of a page as a font inside it, for machines that have none."""

import base64
import io

from src.report.page import FONT

FIRST = 0x2E80  # of the East Asian scripts; what comes before every machine can show
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
    data = base64.b64encode(file.getvalue()).decode()
    return f'@font-face {{ font-family: "{FAMILY}"; src: url(data:font/woff;base64,{data}) format("woff"); }}\n'
