"""How fast a dataset is prepared, and in how much memory.

    python -m benchmarks.prepare --rows 100000                                  # small images, one in ten spoken
    python -m benchmarks.prepare --rows 2000 --size 640x480 --spoken 0          # images as in COCO
    python -m benchmarks.prepare --rows 1000 --size 1024x768 --spoken 1         # as in Localized Narratives

Makes rows (each with an image file of its own bytes, two Chinese captions and, some of them, a recording in Ogg
Vorbis), prepares a tenth of them and then all, and prints rates and the peak memory of the process and of its workers.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from tqdm import tqdm

from src.cli import cores
from tools import prepare_data

DIFFERENT = 200  # images that are made; the files differ by bytes behind the image's end
FILES_A_FOLDER = 1000
WORDS = "红绿蓝黄大小猫狗鱼鸟车船山水人花草房子树木桌椅书包"


def make_rows(folder: Path, rows: int, size: tuple[int, int], spoken: float, seconds: float) -> None:
    """Writes images, recordings and manifest.jsonl."""
    rng = np.random.default_rng(0)
    images = [_image(rng, size) for _ in range(DIFFERENT)]
    for number in range(20 if spoken else 0):
        wave = 0.1 * rng.standard_normal(int(16000 * seconds)) * np.sin(np.arange(int(16000 * seconds)) / 2000)
        soundfile.write(folder / f"{number}.ogg", wave, 16000, format="OGG", subtype="VORBIS")
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for number in tqdm(range(rows), "making", unit=" rows"):
            place = folder / f"{number // FILES_A_FOLDER}" / f"{number}.jpg"
            if number % FILES_A_FOLDER == 0:
                place.parent.mkdir()
            place.write_bytes(images[number % DIFFERENT] + number.to_bytes(8, "big"))
            captions = ["".join(WORDS[place] for place in places) for places in rng.integers(0, len(WORDS), (2, 12))]
            row = {"id": str(number), "image": f"{place.parent.name}/{place.name}", "captions": captions}
            if rng.random() < spoken:
                row["audio"] = [f"{number % 20}.ogg", None]
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")


def _image(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG that is about as detailed as a photograph: noise at several scales."""
    pixels = np.zeros((size[1], size[0], 3))
    for scale in (4, 16, 64):
        coarse = rng.integers(0, 256, (-(-size[1] // scale), -(-size[0] // scale), 3), np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray((pixels / 3).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def prepare(media: Path, manifest: Path, output: Path, workers: int) -> tuple[float, int, int]:
    """Runs the command; returns seconds, and the peak MB of its process and of the largest worker."""
    command = [sys.executable, prepare_data.__file__, "manifest", "--input", str(manifest), "--media", str(media)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--output", str(output), "--workers", str(workers)])
    parent = worker = 0
    while process.poll() is None:
        parent = max(parent, _peak(process.pid))
        worker = max([worker, *map(_peak, _children(process.pid))])
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - started, parent >> 10, worker >> 10


def _peak(pid: int) -> int:
    """The most memory in KB that a process has held."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100000)
    parser.add_argument("--size", default="128x128", help="of the images, in pixels")
    parser.add_argument("--spoken", type=float, default=0.1, help="share of the rows with a recording")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a recording")
    parser.add_argument("--workers", type=int, default=cores())
    args = parser.parse_args()
    size = tuple(map(int, args.size.split("x")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder, args.rows, size, args.spoken, args.seconds)
        lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        print(f"{args.size}, {args.spoken:.0%} spoken, {args.workers} workers, {cores()} cores")
        columns = {"rows": 9, "seconds": 10, "rows/s": 9, "MB written": 12, "MB parent": 11, "MB worker": 11}
        print("".join(f"{name:>{width}}" for name, width in columns.items()), flush=True)
        for rows in (args.rows // 10, args.rows):
            (folder / "part.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
            seconds, parent, worker = prepare(folder, folder / "part.jsonl", folder / "out", args.workers)
            written = sum(path.stat().st_size for path in (folder / "out").iterdir()) >> 20
            shutil.rmtree(folder / "out")
            print(f"{rows:9}{seconds:10.1f}{rows / seconds:9.0f}{written:12}{parent:11}{worker:11}", flush=True)


if __name__ == "__main__":
    main()
