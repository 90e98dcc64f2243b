"""The example gallery is what its tool makes, small, varied, and of pairs that training never shows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from src.demo import speech
from src.demo.captions import parse, write_caption
from src.demo.gallery import CHOSEN, QUERY, VOICES, scenes, write_gallery
from src.demo.render import render
from src.demo.world import COLOURS, LAYOUTS, pair_split
from src.files import ROOT

GALLERY = ROOT / "assets" / "gallery"
MOST_BYTES = 600_000


def spoken() -> list[Path]:
    return sorted(GALLERY.glob("*.ogg"))


def test_images_and_captions_are_those_of_the_scenes() -> None:
    head, *lines = (GALLERY / "captions.tsv").read_text(encoding="utf-8").splitlines()
    assert head == "file\tcaption"
    expected = {f"{number:02}.png": scene for number, scene in enumerate(scenes(), 1)}
    assert dict(line.split("\t") for line in lines) == {name: write_caption(s) for name, s in expected.items()}
    assert sorted(path.name for path in GALLERY.glob("*.png")) == sorted(expected)
    for name, scene in expected.items():
        np.testing.assert_array_equal(np.asarray(Image.open(GALLERY / name)), render(scene), err_msg=name)


def test_it_is_varied_and_held_out() -> None:
    every = scenes()
    facts = [scene.facts for scene in every]
    assert len(set(facts)) == len(facts) == 60
    assert {fact.colour for fact in facts} == set(COLOURS)
    assert {tuple(item.place for item in fact.items) for fact in facts} == set(LAYOUTS.values())
    assert {item.count for fact in facts for item in fact.items} == {1, 2, 3}
    assert len({item.name for fact in facts for item in fact.items}) > 70
    neighbours = [pair for fact in facts[len(CHOSEN) :] for pair in pairwise(item.name for item in fact.items)]
    assert {pair_split(*pair) for pair in neighbours} == {"test"}


def test_it_is_small_and_has_nothing_else() -> None:
    files = [path for path in GALLERY.iterdir()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    others = {path.name for path in files if path.suffix not in (".png", ".ogg")}
    assert others == {QUERY, "captions.tsv", "README.md"} and len(spoken()) == len(VOICES) == 6


@pytest.mark.skipif(not speech.available(), reason="no speech synthesiser")
def test_the_tool_makes_it_again(tmp_path: Path) -> None:
    """Captions to the byte; clips of the same voice saying the same, as far as compression keeps it."""
    write_gallery(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in GALLERY.iterdir()} - {"README.md"}
    assert (tmp_path / "captions.tsv").read_bytes() == (GALLERY / "captions.tsv").read_bytes()
    for path in (GALLERY / QUERY, *spoken()):
        (ours, rate), (theirs, other) = (soundfile.read(folder / path.name) for folder in (tmp_path, GALLERY))
        assert rate == other and len(ours) == len(theirs) > rate, path.name
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99, path.name


def test_the_chosen_captions_are_of_the_grammar() -> None:
    """One that is not would be no scene: it is named."""
    assert all(parse(caption) for caption in CHOSEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.demo.gallery.CHOSEN", ("红底，左边一只恐龙",))
        with pytest.raises(ValueError, match="恐龙"):
            scenes()


def test_without_synthesiser_there_is_a_hint_and_no_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech, "available", lambda: False)
    write_gallery(tmp_path / "new")
    assert capsys.readouterr().out == f"{speech.HINT}\n"
    made = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert made.keys() == {path.name for path in GALLERY.glob("*.png")} | {"captions.tsv"}
    assert made["captions.tsv"] == (GALLERY / "captions.tsv").read_bytes()
