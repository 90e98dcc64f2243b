"""Makes assets/emoji/sprites.png from the emoji package: cut to the visible part, scaled to one cell each.

npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
python tools/make_sprites.py package
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from PIL import Image

from src import cli
from src.data.errors import DataError
from src.demo.render import CELL, COLUMNS
from src.demo.world import ASSETS, all_things


def art_path(folder: Path, emoji: str) -> Path:
    """The image of an emoji in the unpacked package; some names carry the variation selector."""
    stem = "-".join(f"{ord(char):x}" for char in emoji)
    for name in (f"{stem}.webp", f"{stem}-fe0f.webp"):
        if (folder / "assets" / name).is_file():
            return folder / "assets" / name
    raise DataError(f"{folder}: no image of {emoji} (assets/{stem}.webp): give the unpacked npm package")


def make_sheet(folder: Path) -> Image.Image:
    """The sprite sheet, RGBA, ``COLUMNS`` cells a row."""
    things = all_things().values()
    rows = -(-len(things) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for thing in things:
        art = Image.open(art_path(folder, thing.emoji)).convert("RGBA")
        # below this the alpha is a shadow nobody sees
        art = art.crop(art.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
        scale = CELL / max(art.size)
        art = art.resize([max(1, round(side * scale)) for side in art.size], Image.Resampling.LANCZOS)
        row, column = divmod(thing.cell, COLUMNS)
        sheet.paste(art, (column * CELL, row * CELL))
    return sheet


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument("folder", type=cli.user_path, metavar="FOLDER", help="the unpacked npm package")
    make_sheet(parser.parse_args().folder).save(ASSETS / "sprites.png", optimize=True)


if __name__ == "__main__":
    cli.run(main)
