"""Makes assets/fonts/NotoSansSC-Regular-subset.otf from Noto Sans CJK: the characters of this project's texts.

apt-get download fonts-noto-cjk && dpkg-deb -x fonts-noto-cjk_*.deb package
python tools/make_font.py package/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from fontTools import subset
from fontTools.ttLib import TTLibError

from src import cli
from src.data.errors import DataError
from src.files import ROOT
from src.report.page import FONT

VOCAB = ROOT / "config/vocab/bert-base-chinese.txt"
SIMPLIFIED = 2  # place of the face for simplified Chinese in the collection; it has all traditional forms, too
BASIC_BLOCK = (0x4E00, 0x9FA5)  # of Unihan
RANGES = (  # what a caption, a file name or a plot may hold beside the vocabulary
    (0x20, 0x7E),  # ASCII
    (0xA0, 0xFF),  # Latin-1
    (0x391, 0x3C9),  # Greek
    (0x2010, 0x2033),  # dashes, quotation marks, …
    (0x2190, 0x2193),  # arrows
    (0x2200, 0x2265),  # mathematics
    (0x25A0, 0x25FF),  # shapes
    (0x2713, 0x2713),  # ✓
    (0x3000, 0x30FF),  # Chinese punctuation, kana
    BASIC_BLOCK,
    (0xFF01, 0xFFE5),  # full-width forms
)
DROPPED = ("BASE", "GDEF", "GPOS", "GSUB", "VORG", "vhea", "vmtx")  # layout, and text that runs downwards


def characters() -> set[int]:
    """The code points that the font should have, as far as its source has them."""
    vocabulary = set(map(ord, VOCAB.read_text(encoding="utf-8"))) - {ord("\n")}
    return vocabulary.union(*(range(first, last + 1) for first, last in RANGES))


def make_font(source: Path, output: Path) -> None:
    """Writes the subset: outlines as they are, without hints, which FreeType does not need at a figure's size.

    Raises:
        DataError: the source is another font.
    """
    options = subset.Options(font_number=SIMPLIFIED, layout_features=[], hinting=False, glyph_names=False)
    options.drop_tables += DROPPED
    options.notdef_outline = True  # the box that stands for any other character
    options.name_IDs = [*range(8), 13, 14]  # copyright and licence among them
    options.recalc_timestamp = False
    try:
        font = subset.load_font(source, options)
    except (OSError, TTLibError) as error:
        raise DataError(f"{source}: {error}: give NotoSansCJK-Regular.ttc") from None
    if not font.getBestCmap().keys() >= set(range(BASIC_BLOCK[0], BASIC_BLOCK[1] + 1)):
        raise DataError(f"{source} lacks Chinese characters: give NotoSansCJK-Regular.ttc")
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters())
    subsetter.subset(font)
    font.save(output)


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("source", type=cli.user_path, metavar="FILE", help="NotoSansCJK-Regular.ttc")
    make_font(parser.parse_args().source, FONT)


if __name__ == "__main__":
    cli.run(main)
