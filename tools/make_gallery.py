"""Makes the example gallery, assets/gallery: scenes of the demo's world, their captions, and some of them as speech.

python tools/make_gallery.py
python tools/make_gallery.py --output FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.demo.gallery import write_gallery
from src.files import ROOT

DEFAULT = ROOT / "assets" / "gallery"


def main() -> None:
    parser = cli.CommandParser(description=__doc__)
    parser.add_argument(
        "--output", type=cli.user_path, default=DEFAULT, metavar="DIR", help="folder to write (default: assets/gallery)"
    )
    write_gallery(parser.parse_args().output)


if __name__ == "__main__":
    cli.run(main)
