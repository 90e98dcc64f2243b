"""Synthesises captions in Mandarin with eSpeak NG, in worker processes, as the model's audio input.

Each chunk has one voice and one process: eSpeak NG fails, and may hang, when a long-lived process changes its voice.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.config import AudioEncoderConfig
from src.files import ROOT

HINT = "no speech synthesiser: pip install espeakng-loader==0.2.4 adds speech; continuing with images and text only"
# without f2, f3 and f5: their breath is noise that no seed repeats
VOICES = ("cmn", "cmn+f1", "cmn+m3", "cmn+f4", "cmn+m1", "cmn+linda", "cmn+m7")
RATES = (290, 330)  # eSpeak's words a minute: the longest caption of the quick world stays below 3.2 s
PITCHES = (35, 65)  # of 0 … 99
CHUNK = 250  # captions for each process
PROCESSES = 2
TIMEOUT = 120.0  # seconds a chunk; it takes about three


@dataclass(frozen=True)
class Voice:
    name: str
    rate: int
    pitch: int


@dataclass(frozen=True)
class Spoken:
    """A chunk's audio clips in the order of its captions (uint8 [frames, mels]; None: it failed) and what failed."""

    audio: list[np.ndarray | None]
    trouble: str = ""


def available() -> bool:
    """Whether the speech synthesiser is installed."""
    return importlib.util.find_spec("espeakng_loader") is not None


def sample_voice(seed: Sequence[int], chunk: int, attempt: int) -> Voice:
    """The voice of a chunk: names in turn, speed and pitch at random."""
    rng = np.random.default_rng([*seed, chunk, attempt])
    name = VOICES[(chunk + attempt) % len(VOICES)]
    return Voice(name, int(rng.integers(*RATES, endpoint=True)), int(rng.integers(*PITCHES, endpoint=True)))


def speak(captions: Sequence[str], audio: AudioEncoderConfig, seed: Sequence[int]) -> Iterator[Spoken]:
    """The audio clips of the captions, chunk by chunk in their order; the same for the same seed."""
    chunks = [captions[start : start + CHUNK] for start in range(0, len(captions), CHUNK)]
    pool = ThreadPoolExecutor(PROCESSES)  # each thread waits for a process
    try:
        yield from pool.map(lambda job: _speak_chunk(job[1], audio, seed, job[0]), enumerate(chunks))
    finally:
        pool.shutdown(cancel_futures=True)


def _speak_chunk(captions: Sequence[str], audio: AudioEncoderConfig, seed: Sequence[int], chunk: int) -> Spoken:
    troubles = []
    for attempt in range(2):
        voice = sample_voice(seed, chunk, attempt)
        try:
            return Spoken(run_worker(captions, audio, voice), "; ".join(troubles))
        except subprocess.TimeoutExpired:
            troubles.append(f"voice {voice.name} took more than {TIMEOUT:.0f} s")
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
            troubles.append(f"voice {voice.name} failed ({''.join(last) or f'exit {error.returncode}'})")
    return Spoken([None] * len(captions), "; ".join(troubles))


def run_worker(captions: Sequence[str], audio: AudioEncoderConfig, voice: Voice) -> list[np.ndarray]:
    """Speaks captions with one voice, in a process of its own: what a model reads of them."""
    return _work(captions, asdict(audio), voice)[0]


def record(captions: Sequence[str], voice: Voice) -> tuple[list[np.ndarray], int]:
    """Speaks captions with one voice: the samples, float32 [n] in −1 … 1, and their rate in Hz."""
    return _work(captions, None, voice)


def _work(captions: Sequence[str], audio: dict[str, Any] | None, voice: Voice) -> tuple[list[np.ndarray], int]:
    job = json.dumps({"captions": list(captions), "audio": audio, "voice": asdict(voice)})
    # one thread each: the processes share the cores
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clips.npz"
        command = [sys.executable, "-c", "from src.demo.speech_worker import main; main()", str(out)]
        subprocess.run(
            command, input=job.encode(), env=environment, cwd=ROOT, capture_output=True, check=True, timeout=TIMEOUT
        )
        with np.load(out) as result:
            return np.split(result["frames"], np.cumsum(result["lengths"])[:-1]), int(result["rate"])
