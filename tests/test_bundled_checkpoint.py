"""The bundled checkpoint answers as it is stored in tests/data/bundled: no change of the code may change its answers.

Whole commands on a small gallery of the demo's scenes. The numbers hold for other processors; on the one that made them
all answers are equal to the bit.
"""

import json
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.demo import speech
from src.demo.captions import write_caption
from src.demo.render import render_png
from src.demo.world import Scene, sample_scenes
from src.files import ROOT

STORED = Path(__file__).resolve().parent / "data" / "bundled"
SCENES, TEXTS, SPOKEN, ASKED = 8, 2, 2, 3  # images; texts of the first two; the scene that is spoken, and that is asked
SAMPLES = 2
SPEAK = """
import sys
import numpy as np
from src.demo.speech_worker import Synthesizer
synthesizer = Synthesizer("cmn", 300, 50)
clip = (synthesizer.say(sys.argv[1]) * 32768).astype(np.int16)
sys.stdout.buffer.write(np.int32(synthesizer.sample_rate).tobytes() + clip.tobytes())
"""

pytestmark = pytest.mark.e2e
needs_speech = pytest.mark.skipif(not speech.available(), reason="no speech synthesiser")


def scenes() -> list[Scene]:
    return sample_scenes("demo_full", "test", SCENES, 7)


def write_gallery(folder: Path) -> None:
    """scene-….png, text-….txt and, where there is a synthesiser, spoken.wav."""
    folder.mkdir()
    for number, scene in enumerate(scenes()):
        (folder / f"scene-{number}.png").write_bytes(render_png(scene))
        if number < TEXTS:
            (folder / f"text-{number}.txt").write_text(write_caption(scene) + "\n", encoding="utf-8")
    if speech.available():
        command = [sys.executable, "-c", SPEAK, write_caption(scenes()[SPOKEN])]
        spoken = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout
        with wave.open(str(folder / "spoken.wav"), "wb") as file:
            file.setparams((1, 2, int(np.frombuffer(spoken[:4], np.int32)[0]), 0, "NONE", ""))
            file.writeframes(spoken[4:])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled")
    write_gallery(folder / "gallery")
    return folder


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((STORED / "answers.json").read_text(encoding="utf-8"))


def call(home: Path, *arguments: str) -> str:
    """Calls infer.py without naming a checkpoint; returns what it noted."""
    command = [sys.executable, str(ROOT / "infer.py"), *arguments]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def ask(home: Path, output: str, *arguments: str) -> Path:
    """Calls infer.py with something of the model's world, of which there is nothing to note; the folder of results."""
    assert not unlike(call(home, *arguments, "--output", output))
    return home / output


def unlike(notes: str) -> list[str]:
    """What infer.py found unlike the training data."""
    lines = [line for line in notes.splitlines() if "note: unlike what this model was trained on" in line]
    return re.findall(r"(\S+) \([0-9.]+\)", " ".join(lines))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_hits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same files in the same order, cosines to 1e-5."""
    modalities = [name for name in expected if name != "query" and (name != "audio" or speech.available())]
    assert modalities and [name for name in found if name != "query"] == modalities
    for modality in modalities:
        ours, theirs = found[modality], expected[modality]
        assert [hit["file"] for hit in ours] == [hit["file"] for hit in theirs], modality
        for key, error in (("cosine", 1e-5), ("share", 1e-3)):
            assert [hit[key] for hit in ours] == pytest.approx([hit[key] for hit in theirs], abs=error), modality


def test_a_text_finds_what_it_found(home: Path, stored: dict[str, Any]) -> None:
    asked = write_caption(scenes()[ASKED])
    found = ask(home, "by-text", "--query", asked, "--gallery", "gallery", "--top", str(SCENES))
    assert_same_hits(read(found / "query.json"), stored["text_query"])
    assert stored["text_query"]["image"][0]["file"] == f"gallery/scene-{ASKED}.png"


@needs_speech
def test_speech_finds_what_it_found(home: Path, stored: dict[str, Any]) -> None:
    asked = ("--query", "gallery/spoken.wav", "--gallery", "gallery", "--top", str(SCENES))
    assert_same_hits(read(ask(home, "by-speech", *asked) / "query.json"), stored["audio_query"])


def test_captions_and_the_transcript_are_the_same(home: Path, stored: dict[str, Any]) -> None:
    assert len(unlike(call(home, "--input", "gallery", "--output", "described"))) <= 1, "of a hundred scenes one is"
    found = read(home / "described" / "captions.json")
    expected = [entry for entry in stored["captions"] if speech.available() or not entry["image_id"].endswith(".wav")]
    assert found == expected and len(found) == SCENES + speech.available()


def test_generated_images_are_the_same(home: Path, stored: dict[str, Any]) -> None:
    subject = write_caption(scenes()[ASKED])
    folder = ask(home, "generated", "--generate", subject, "--samples", str(SAMPLES))
    scores = [entry["score"] for entry in read(folder / "generated.json")["images"]]
    assert scores == pytest.approx(stored["generated_scores"], abs=1e-3) and len(scores) == SAMPLES
    for rank in range(1, SAMPLES + 1):
        ours, theirs = (
            np.asarray(Image.open(place / f"generated-{rank}.png"), np.float32) for place in (folder, STORED)
        )
        assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 1


def test_what_is_not_of_its_world_is_told(home: Path) -> None:
    """Of each modality: a sentence, and in one folder with scenes a checkerboard and noise, which alone are named."""
    asked = ("--query", "昨天的会议改到下周三下午三点", "--gallery", "gallery", "--output", "outside")
    assert unlike(call(home, *asked)) == ["'昨天的会议改到下周三下午三点'"]
    folder, rng = home / "mixed", np.random.default_rng(0)
    folder.mkdir()
    for number in (0, 1):
        shutil.copy(home / "gallery" / f"scene-{number}.png", folder)
    squares = np.kron(np.indices((8, 8)).sum(0) % 2 * 255, np.ones((8, 8)))
    Image.fromarray(squares.astype(np.uint8)).save(folder / "x.png")
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(rng.normal(0, 3000, 40000).astype(np.int16).tobytes())
    assert unlike(call(home, "--input", "mixed", "runtime.mode=pynative")) == ["mixed/x.png", "mixed/x.wav"]
