"""A page in the browser to try a trained model with: search, describe, ask, generate.

python tools/web.py                                                 the bundled checkpoint on assets/gallery
python tools/web.py --checkpoint runs/mine --gallery photos --index photos.index
python tools/web.py --checkpoint runs/mine --compare opt_demo       two models side by side
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is called from

from src import cli
from src.files import ROOT
from src.web import server
from src.web.worker import Worker


def parse() -> cli.Arguments:
    parser = cli.CommandParser(description=__doc__)
    checkpoint = "run or checkpoint folder (default: the bundled pretrained/opt_demo)"
    parser.add_argument("--checkpoint", default="opt_demo", metavar="DIR", type=cli.user_path, help=checkpoint)
    parser.add_argument("--compare", metavar="DIR", type=cli.user_path, help="a second one, shown beside it")
    parser.add_argument("--gallery", metavar="DIR", type=cli.user_path, help="default: assets/gallery")
    parser.add_argument("--index", metavar="FILE", type=cli.user_path, help="the gallery, of infer.py --save-index")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: this machine alone)")
    parser.add_argument("--port", default=7860, type=int, metavar="N", help="0: any free one (default: 7860)")
    parser.add_ema()
    parser.add_settings()
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse()
    server.check_packages()
    server.warn_of(args.host)
    checkpoints = [path for path in (args.checkpoint, args.compare) if path is not None]
    gallery = args.gallery or (ROOT / "assets" / "gallery" if args.index is None else None)
    with (
        server.ended_by_signals(),
        server.uploads(),
        server.listen(args.host, args.port) as bound,
        contextlib.closing(Worker()) as worker,
    ):
        service = server.load_service(worker, checkpoints, gallery, args.index, args.settings, args.ema)
        server.serve(service, bound)


if __name__ == "__main__":
    cli.run(main)
