"""The demo corpus: emoji scenes with captions (or questions) and speech, generated from a seed."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from tqdm import tqdm

from src.cli import Arguments, CommandParser, user_path
from src.config import AudioEncoderConfig, load_config
from src.data.errors import DataError
from src.data.record import Question, Record
from src.data.writer import DatasetWriter
from src.demo import speech
from src.demo.captions import write_caption
from src.demo.questions import KINDS, ask
from src.demo.render import render_png
from src.demo.world import SPLITS, Scene, sample_scenes


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--world", choices=("demo", "demo_full"), default="demo", help="28 objects and 6 backgrounds, or 86 and 8"
    )
    parser.add_argument("--output", type=user_path, required=True, metavar="DIR", help="dataset folder to write")
    parser.add_argument("--scenes", type=int, default=8000, metavar="N", help="training scenes (default: 8000)")
    parser.add_argument(
        "--dev", type=int, default=500, metavar="N", help="scenes of held-out object pairs, for validation (500)"
    )
    parser.add_argument(
        "--test", type=int, default=1000, metavar="N", help="scenes of other held-out object pairs, for testing (1000)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of everything random (default: 1)")
    parser.add_argument(
        "--questions", type=int, default=0, metavar="N", help=f"instead of a caption N questions, 1 to {len(KINDS)}"
    )
    parser.add_argument("--no-speech", action="store_true", help="images and texts only")
    parser.add_storage_settings()


def run(args: Arguments) -> None:
    """Writes the dataset and prints its counts."""
    counts = {"train": args.scenes, "dev": args.dev, "test": args.test}
    for split, option in zip(SPLITS, ("--scenes", "--dev", "--test"), strict=True):
        if counts[split] < 1:
            raise DataError(f"{option} {counts[split]}: give at least one scene")
    if not 0 <= args.questions <= len(KINDS):
        raise DataError(f"--questions {args.questions}: give 1 to {len(KINDS)}, or leave it out for captions")
    if args.seed < 0:
        raise DataError(f"--seed {args.seed}: give 0 or more")
    audio = load_config(args.config, args.settings).model.audio
    if audio.input == "feature":
        raise DataError("model.audio.input=feature, but the demo makes audio clips: use fbank or wav2vec2")
    spoken = not args.no_speech
    if spoken and not speech.available():
        tqdm.write(speech.HINT)
        spoken = False
    about = {"source": "demo", "world": args.world, "seed": args.seed, "scenes": counts, "speech": spoken}
    if args.questions:
        about["questions"] = args.questions
    rows = []
    with DatasetWriter(args.output, audio, about) as writer:
        for split in SPLITS:
            rows.append(_write_split(writer, args, split, counts[split], audio if spoken else None))
    print(f"{args.output}: world {args.world}, seed {args.seed}")
    print(f"{'split':6} {'scenes':>7} {'spoken':>7} {'silent':>7} {'cut':>5} {'seconds of speech':>18}")
    for row in rows:
        print("{:6} {:7} {:7} {:7} {:5} {:18.2f}".format(*row))


def _write_split(
    writer: DatasetWriter, args: Arguments, split: str, count: int, audio: AudioEncoderConfig | None
) -> tuple[str, int, int, int, int, float]:
    """Returns the split's row of the summary: its name, scenes, spoken, silent and cut texts, mean duration."""
    scenes = sample_scenes(args.world, split, count, args.seed)
    said = [_texts(scene, args.questions) for scene in scenes]
    frames, silent = [], 0
    clips = _audio([text for texts, _ in said for text in texts], audio, (args.seed, SPLITS.index(split)))
    progress = tqdm(zip(scenes, said, strict=True), split, len(scenes), unit="scene")
    for number, (scene, (texts, questions)) in enumerate(progress):
        own = tuple(islice(clips, len(texts)))
        writer.add(split, Record(f"{split}-{number:06d}", render_png(scene), texts, own, questions=questions))
        frames += [len(clip) for clip in own if clip is not None]
        silent += sum(clip is None for clip in own)
    if audio is None or not frames:
        return split, count, 0, silent, 0, 0.0
    hops = audio.length / audio.max_frames  # frames, or samples of a waveform, in a hop
    seconds = float(np.mean(frames)) / hops * audio.hop_ms / 1000
    return split, count, len(frames), silent, frames.count(audio.length), seconds


def _texts(scene: Scene, questions: int) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    """What is said of a scene: its caption, or so many questions with what makes them questions."""
    if not questions:
        return (write_caption(scene),), ()
    texts, asked = zip(*ask(scene, questions), strict=True)
    return texts, asked


def _audio(captions: list[str], audio: AudioEncoderConfig | None, seed: tuple[int, ...]) -> Iterator[np.ndarray | None]:
    """The audio clip of each caption; None if speech is off or failed."""
    if audio is None:
        yield from [None] * len(captions)
        return
    for chunk in speech.speak(captions, audio, seed):
        if chunk.trouble:
            silent = sum(clip is None for clip in chunk.audio)
            tqdm.write(f"speech: {chunk.trouble}; {f'{silent} captions stay silent' if silent else 'spoken again'}")
        yield from chunk.audio
