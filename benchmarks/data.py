"""Throughput of the data pipeline, compared with a PyTorch DataLoader that does the same work and with training.

    python -m benchmarks.data

A corpus is generated in a temporary folder: JPEG images of 500×375, Chinese captions, log-mel audio clips. Every
contestant reads it in the same order and uses the same functions: it decodes and augments the images to 224×224, masks
spans of the audio clips, splits the captions into WordPieces and whole words, and samples the masks. The contestants
take turns; a result is the median of the rounds. Then come the peak memory of a process that reads a small corpus and
one ten times as large, and how many samples a second a pre-training step of the demo takes on the same machine.
"""

import argparse
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.rounds import run_apart
from src import cli
from src.config import AugmentConfig, Config, load_config
from src.config.paths import path_setting
from src.data.pipeline import Batch, Loader
from src.data.record import Record
from src.data.writer import DatasetWriter
from src.report.tables import table

AUGMENT = AugmentConfig(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    time_masks=2,
    frequency_masks=2,
)
IMAGE = (375, 500)  # height and width of the stored JPEGs
IMAGES = 100  # that are drawn; the other records' differ in bytes behind the end of the file
PREFETCH = 4  # batches that a contestant has made before its turn, at most
GROWTH = 10  # how many times larger the second corpus is in which memory is measured
TRAINING = "config/pretrain/demo.yaml"
TURN = 6  # batches a turn
STEPS, WARM_UP = 3, 1  # of training that are timed, and before them


def make_config(folder: Path, batch_size: int, workers: int = 1) -> Config:
    """Sizes of the base model, words hidden, views varied."""
    config = load_config("config/model/base.yaml", [path_setting("data.path", folder), "objectives.weights.mlm=1"])
    data = replace(config.data, batch_size=batch_size, workers=workers, prefetch=PREFETCH, augment=AUGMENT)
    return replace(config, data=data)


def write_corpus(folder: Path, records: int, config: Config) -> None:
    """Images with the spectrum of photographs: soft shapes and grain."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(IMAGE[::-1])
        grain = rng.integers(-12, 13, (*IMAGE, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    vocabulary = Path(config.model.text.vocab).read_text(encoding="utf-8").split()
    letters = [token for token in vocabulary if len(token) == 1 and token > "一"]
    audio = config.model.audio
    with DatasetWriter(folder, audio, {"name": "benchmark"}) as writer:
        for index in tqdm(range(records), f"{records} records", leave=False):
            caption = "".join(rng.choice(letters, rng.integers(10, 25)))
            clip = rng.integers(0, 256, (rng.integers(audio.max_frames // 2, audio.max_frames + 1), audio.mels))
            image = images[index % IMAGES] + index.to_bytes(8, "little")
            writer.add("train", Record(f"{index}", image, (caption,), (clip.astype(np.uint8),)))


class Batches(torch.utils.data.Dataset):
    """The same batches for a DataLoader, by the functions of :class:`Loader`: item ``n`` is the batch of step ``n``."""

    def __init__(self, config: Config) -> None:
        self.config, self.loader = config, None

    def __getitem__(self, step: int) -> Batch:
        if self.loader is None:  # in the process that uses it
            self.loader = Loader(self.config, "train")
            self.steps = enumerate(self.loader.order.steps(self.config.data.batch_size))
        wanted = next(made for number, made in self.steps if number == step)  # a worker's steps ascend
        return self.loader._make(wanted.samples, wanted.passes, None, augment=True)[0]


def endless() -> Iterator[int]:
    step = 0
    while True:
        yield step
        step += 1


def contestants(folder: Path, batch_size: int) -> dict[str, Iterator]:
    """Endless batches of each, by name."""
    found: dict[str, Iterator] = {}
    for workers in (1, 2):
        threads = "1 thread" if workers == 1 else f"{workers} threads"
        found[f"Loader, {threads}"] = Loader(make_config(folder, batch_size, workers), "train").batches()
    for workers in (0, 1, 2):
        found[f"PyTorch DataLoader, num_workers={workers}"] = iter(
            torch.utils.data.DataLoader(
                Batches(make_config(folder, batch_size)),
                batch_size=None,
                sampler=endless(),
                num_workers=workers,
                # a forked child of a process that has run MindSpore hangs
                multiprocessing_context="spawn" if workers else None,
            )
        )
    return found


def check_equal(batches: dict[str, Iterator]) -> None:
    """All contestants do the same: the first batch is the same."""
    (_, expected), *others = [(name, next(iterator)) for name, iterator in batches.items()]
    for name, batch in others:
        for field, value in expected.items():
            if not np.array_equal(np.asarray(batch[field]), value):
                raise RuntimeError(f"{name}: {field} is not what the Loader gives")


def take_turns(batches: dict[str, Iterator], rounds: int) -> dict[str, list[float]]:
    """Seconds a batch of each contestant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    for _ in tqdm(range(rounds), "rounds", leave=False):
        for name, iterator in batches.items():
            for _ in range(PREFETCH + 1):  # what was made before its turn
                next(iterator)
            began = time.perf_counter()
            for _ in range(TURN):
                next(iterator)
            seconds[name].append((time.perf_counter() - began) / TURN)
            time.sleep(1.5 * PREFETCH * seconds[name][-1])  # until nothing works ahead in another's turn
    return seconds


def peak_memory(folder: Path, batch_size: int, count: int) -> float:
    """MB that a process takes at most that does nothing but read batches."""
    batches = Loader(make_config(folder, batch_size), "train").batches()
    for _ in range(count):
        next(batches)
    batches.close()
    # getrusage would count what the parent had when it started this process
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[1]) / 1024


def training_need() -> float:
    """Samples a second that the demo's pre-training step takes."""
    from benchmarks.train_step import make_batch, mindspore_step
    from src.models.build import build_model
    from src.runtime import setup

    config = load_config(TRAINING)
    setup(config.runtime, config.seed)
    step, batch = mindspore_step(build_model(config), config), make_batch(config)
    seconds = []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        step(batch)
        step.result()  # a call alone does not wait for the step's end
        seconds.append(time.perf_counter() - began)
    return config.data.batch_size / median(seconds[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--records", type=int, default=1000, help="of the corpus (default: 1000)")
    parser.add_argument("--batch", type=int, default=32, help="samples a batch (default: 32)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default: 5)")
    parser.add_argument("--no-step", action="store_true", help="leave the demo's training step out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = {records: Path(place) / f"{records}" for records in (args.records, GROWTH * args.records)}
        for records, folder in folders.items():
            write_corpus(folder, records, make_config(folder, args.batch))
        small = folders[args.records]
        batches = contestants(small, args.batch)
        check_equal(batches)
        seconds = take_turns(batches, args.rounds)
        batches.clear()
        memory = {records: run_apart(peak_memory, folder, args.batch, 25) for records, folder in folders.items()}
    need = None if args.no_step else run_apart(training_need)
    rows = []
    for name, times in seconds.items():
        rate = args.batch / median(times)
        spread = f"{args.batch / max(times):.0f}–{args.batch / min(times):.0f}"
        rows.append([name, f"{rate:.0f}", spread, *([] if need is None else [f"{rate / need:.1f}"])])
    header = ["batches by", "samples/s", "slowest–fastest turn", *([] if need is None else ["of the step's need"])]
    print(table(rows, header))
    print(f"\n{args.rounds} rounds, batch {args.batch}, {len(os.sched_getaffinity(0))} core(s)")
    if need is not None:
        print(f"a step of {TRAINING} takes {need:.0f} samples/s")
    for records, peak in memory.items():
        print(f"{records} records: peak memory {peak:.0f} MB")


if __name__ == "__main__":
    cli.run(main)
