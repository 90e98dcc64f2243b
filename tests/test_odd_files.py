"""Odd files of every kind: a rejected row, a skipped file, or what a reader expects; never the end of a whole run."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from corpora import prepare, read, rejected, write_lines
from PIL import Image, PngImagePlugin

from src import cli
from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.files import own_files
from src.config import AudioEncoderConfig, EvalConfig, load_config, to_yaml
from src.config.paths import path_setting, resolve
from src.data import audio
from src.data.decoding import decoding, parse_json, read_bytes, whole_text
from src.data.errors import DataError
from src.data.image import decode_image, open_rgb
from src.data.prepare.media import pack_image, read_row
from src.data.prepare.rows import Row, read_lines
from src.data.record import ROOM, Record, image_room, pack, unpack
from src.data.regions import load_features, load_regions
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.evaluator import Split
from src.evaluation.text_generation import CaptionEvaluator
from src.files import write_json
from src.inference import gallery, media
from src.inference.encode import Items
from src.report.plots import loss_curves
from src.report.sheets import retrieval_sheet
from tests.oracles import tiny_model

RATE = 16000
WAVE2VEC = AudioEncoderConfig(input="wav2vec2")


def tone(seconds: float = 2.0, hz: float = 440) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)


def rotated(exif: bytes = b"", **options: object) -> bytes:
    """A JPEG whose left half is white, to be shown turned clockwise: its upper half is white then."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[20:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, exif=exif, **options)
    return buffer.getvalue()


def is_turned(image: Image.Image) -> bool:
    shown = np.asarray(image).astype(int)
    return bool(shown[:, :15].min() > 240 and shown[:, 25:].max() < 15)


# the one net


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), struct.error("x"), AttributeError("y")])
def test_whatever_a_decoder_raises_is_a_data_error(error: Exception) -> None:
    with (
        pytest.raises(DataError, match=r"^a\.png: not a readable image \(.+\)$"),
        decoding("a.png: not a readable image"),
    ):
        raise error


def test_an_interruption_is_no_damage() -> None:
    with pytest.raises(KeyboardInterrupt), decoding("a.png"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["a" * 300, "猫" * 200 + ".png", "a\0.png", "\ud83d.png"])
def test_a_name_that_no_file_can_have_is_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such image file"):
        read_bytes(tmp_path / name, "image file")
    with pytest.raises(DataError, match="no such audio file"):
        audio.load_audio(tmp_path / name)
    with pytest.raises(DataError, match="no such file of regions"):
        load_regions(tmp_path / name, 6)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(DataError, match="no such audio file"):
        audio.load_audio(tmp_path / "a.wav")


def test_json_of_any_depth_is_an_error_or_a_value() -> None:
    assert parse_json('{"a": [1]}', "malformed JSON") == {"a": [1]}
    for text in ("[" * 100_000 + "]" * 100_000, "9" * 5000, b"\xff"):
        with pytest.raises(DataError, match="^malformed JSON"):
            parse_json(text, "malformed JSON")


def test_texts_are_mended() -> None:
    assert whole_text("好看\ud83d") == "好看\ufffd" and whole_text("\ud83d\ude00") == "😀" and whole_text("猫") == "猫"


# images


def test_orientation_is_read_beside_odd_tags() -> None:
    odd = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHII", 0x112, 3, 1, 6)
    odd += struct.pack("<HHI4s", 0x11A, 2, 4, b"72\0\0") + bytes(4)  # a number as text
    assert is_turned(open_rgb(rotated(b"Exif\0\0" + odd), "p"))
    exif = Image.Exif()
    exif[0x112] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6">\xff\xfe\x92</x:xmpmeta>'
    assert is_turned(open_rgb(rotated(exif.tobytes(), xmp=xmp), "p"))


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_pillows(turn: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = turn
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(np.asarray(open_rgb(buffer.getvalue(), "p")), np.asarray(wanted))


@pytest.mark.filterwarnings("ignore")  # Pillow's remark
def test_an_unreadable_exif_block_leaves_the_image() -> None:
    data = rotated(b"Exif\0\0" + b"MM\0*\0\0\xff\xff" + bytes(range(40)))
    assert open_rgb(data, "p").size == (40, 40)
    word = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHI4s", 0x112, 2, 4, b"six\0") + bytes(4)
    stored = open_rgb(rotated(b"Exif\0\0" + word), "p")
    assert np.array_equal(np.asarray(stored), np.asarray(Image.open(io.BytesIO(rotated()))))


def test_texts_beside_pixels_do_not_matter() -> None:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe")
    Image.new("RGB", (6, 4), "red").save(buffer, "PNG", pnginfo=info)
    assert decode_image(buffer.getvalue(), 4, "crop", "p")[0, 0].tolist() == [255, 0, 0]


def test_pixels_are_bounded_alike_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("src.data.image.MOST_PIXELS", 99)
    buffer = io.BytesIO()
    Image.new("1", (10, 10)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    for read_it in (
        lambda: pack_image(buffer.getvalue(), tmp_path / "a.png", 512),
        lambda: media.read_file(tmp_path / "a.png", tiny_model()),
        lambda: decode_image(buffer.getvalue(), 4, "crop", "a.png"),
    ):
        with pytest.raises(DataError, match=r"a\.png: 10 × 10 pixels are too many, at most 99 are read"):
            read_it()


def noise(path: Path, width: int, height: int, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def test_a_file_larger_than_a_record_is_stored_smaller(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", 1400, 1050)
    assert path.stat().st_size > ROOM
    stored = Image.open(io.BytesIO(pack_image(path.read_bytes(), path, 2048)))
    assert stored.size == (1400, 1050) and stored.format == "JPEG"
    small = pack_image(path.read_bytes(), path, 2048, 50_000)
    assert len(small) <= 50_000 and abs(np.divide(*Image.open(io.BytesIO(small)).size) - 4 / 3) < 0.05
    flat = tmp_path / "flat.png"
    Image.new("RGB", (300, 200), "red").save(flat, compress_level=0)
    again = Image.open(io.BytesIO(pack_image(flat.read_bytes(), flat, 512, 100_000)))  # it fits once it is compressed
    assert again.format == "PNG" and np.array_equal(np.asarray(again), np.asarray(Image.open(flat)))


def test_an_image_leaves_room_for_what_its_record_holds_beside_it(tmp_path: Path) -> None:
    path, model = noise(tmp_path / "a.png", 200, 150), tiny_model()
    size = path.stat().st_size
    for beside, kept in ((1, True), (ROOM - 2 * size, True), (ROOM - size, False), (ROOM - size // 9, False)):
        record = read_row(Row("m", 1, "k", path, ("a" * beside,)), path.read_bytes(), model, 512)
        assert (record.image == path.read_bytes()) == kept
        assert len(record.image) <= image_room(record)
        assert unpack(pack(record, model.audio), np.uint8, (64,)).image == record.image
        assert Image.open(io.BytesIO(record.image)).width >= 40, "no smaller than it must be"


def test_of_a_large_animation_the_first_frame_is_stored(tmp_path: Path) -> None:
    frames = [Image.effect_noise((60, 40), 90) for _ in range(30)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "a.gif").read_bytes()
    found = Image.open(io.BytesIO(pack_image(data, tmp_path / "a.gif", 512, len(data) - 1)))
    first = Image.open(tmp_path / "a.gif").convert("RGB")
    assert getattr(found, "n_frames", 1) == 1 and np.array_equal(np.asarray(found), np.asarray(first))


# audio


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(), RATE)
    whole, _ = audio.load_audio(path)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # as written into a pipe
    path.write_bytes(data)
    for seconds, wanted in ((None, whole), (9.0, whole), (0.5, whole[: RATE // 2 + 1])):
        assert np.array_equal(audio.load_audio(path, seconds)[0], wanted)
    assert np.array_equal(audio.load_audio(path, 0.5, 1.75)[0], whole[28000:])


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        (tmp_path / "b.wav").write_bytes(data[:40] + struct.pack("<I", size) + data[44:])
        assert np.array_equal(audio.load_audio(tmp_path / "b.wav")[0], audio.load_audio(tmp_path / "a.wav")[0])


def test_of_a_long_recording_the_beginning_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    soundfile.write(tmp_path / "a.wav", np.tile(tone(), 10), RATE)
    short = audio.longest(model.audio)
    wanted = audio.log_mel(*audio.load_audio(tmp_path / "a.wav"), model.audio)
    decoded = []
    blocks = audio._blocks
    monkeypatch.setattr(audio, "_blocks", lambda *a: (decoded.append(len(b)) or b for b in blocks(*a)))
    medium = media.read_file(tmp_path / "a.wav", model)
    assert np.array_equal(medium.content, wanted) and "is cut to its first" in medium.cut
    assert sum(decoded) <= short * RATE + 2


@pytest.mark.parametrize("right", [-1.0, -0.97])
def test_opposite_channels_do_not_cancel(tmp_path: Path, right: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), right * tone()], 1), RATE)
    soundfile.write(tmp_path / "b.wav", tone(), RATE)
    found, wanted = (
        audio.log_mel(*audio.load_audio(tmp_path / name), AudioEncoderConfig()) for name in ("a.wav", "b.wav")
    )
    assert np.array_equal(found, wanted)


def test_other_channels_are_averaged() -> None:
    rng = np.random.default_rng(0)
    wave = rng.standard_normal((4000, 6)).astype(np.float32)
    assert np.array_equal(audio.mono(wave), wave.mean(axis=1))
    alone = np.zeros_like(wave)
    alone[:, 3] = wave[:, 3]
    assert np.array_equal(audio.mono(alone), alone.mean(axis=1))


def test_loud_and_quiet_waveforms_keep_their_shape() -> None:
    wave = tone(0.2).astype(np.float32)
    wanted = wave / np.abs(wave).max()
    for factor in (1e-7, 1e-4, 1.0, 50.0, 1e9):
        stored = audio.waveform(wave * np.float32(factor), RATE, WAVE2VEC).astype(float)
        assert np.abs(stored / np.abs(stored).max() - wanted).max() < 1 / 400, factor
    usual = audio.waveform(wave, RATE, WAVE2VEC)
    assert np.array_equal(usual, np.rint(wave * 32767).astype(np.int16))  # what needs no scaling is not scaled
    assert not audio.waveform(np.zeros(800, np.float32), RATE, WAVE2VEC).any()


def test_log_mels_of_extreme_loudness(tmp_path: Path) -> None:
    wave = tone(0.2).astype(np.float32)
    wanted = audio.log_mel(wave, RATE, AudioEncoderConfig()).astype(int)
    for factor in (1e-25, 1e14):
        found = audio.log_mel(wave * np.float32(factor), RATE, AudioEncoderConfig())
        assert np.abs(found - wanted).max() <= 1
    soundfile.write(tmp_path / "a.wav", np.array([0, 1e30]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="a sample is between −1 and 1"):
        audio.load_audio(tmp_path / "a.wav")


# features


def npy(shape: tuple[int, ...], content: bytes = b"", header: int = 0) -> bytes:
    """An .npy that promises a shape; ``header``: spaces in its header."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}" + " " * header + "\n"
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text.encode() + content


@pytest.mark.parametrize(
    "content", [npy((1 << 40, 6)), npy((3, 6), bytes(72), 1 << 21), npy((-1, 6)), b"\x93NUMPY\x09\0"]
)
def test_a_header_of_features_is_not_trusted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=rf"{name}: not a readable \.npy or \.npz"):
            load_features(tmp_path / name, 6)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", features=np.zeros((30000, 6), np.float32))
    assert load_features(tmp_path / "a.npz", 6).shape == (30000, 6)
    monkeypatch.setattr("src.data.regions.MOST_BYTES", 1 << 19)
    with pytest.raises(DataError, match="an array of 720000 bytes"):
        load_features(tmp_path / "a.npz", 6)


# rows of a corpus


def test_a_preparation_outlives_every_odd_row(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "good.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "texture.dds")
    data = bytearray((tmp_path / "texture.dds").read_bytes())
    data[80:88] = struct.pack("<I4s", 4, b"ABCD")  # a pixel format that Pillow has no decoder for
    (tmp_path / "texture.jpg").write_bytes(data)
    deep = '{"id": "deep", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}"
    odd = [
        {"id": "texture", "image": "texture.jpg"},
        {"id": "url", "caption": "b", "audio": "https://example.org/a.wav?sig=" + "a" * 300},
        {"id": "regions", "regions": "a" * 300 + ".npz"},
        {"id": "split", "caption": "b", "split": ["train"]},
        {"id": [[]], "caption": "b"},
    ]
    good = {"image": "good.png", "split": "train"}
    lines = [{"id": "1", "caption": "好\ud83d", **good}, deep, *odd, {"id": "2", "caption": "\ud83d\ude00", **good}]
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    output = tmp_path / "out"
    arguments = ("--input", write_lines(tmp_path / "m.jsonl", texts), "--output", output)
    prepare("manifest", *arguments, "--max-bad", 0.9, "--workers", 1)
    assert {key: record.captions for key, record in read(output, "train").items()} == {"1": ("好\ufffd",), "2": ("😀",)}
    assert [entry["line"] for entry in rejected(output)] == [2, 3, 4, 5, 6, 7]


def test_odd_values_in_other_corpora(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "a.jpg")
    sentence = {"raw": "a cat", "sentid": [1]}
    entries = [
        {"filename": "a.jpg", "split": "train", "sentences": [sentence]},
        {"filename": "a.jpg", "split": ["train"], "sentences": []},
        {"filename": "a.jpg", "filepath": 7, "split": "train", "sentences": []},
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": entries}))
    output = tmp_path / "out"
    prepare("karpathy", "--input", tmp_path / "k.json", "--images", tmp_path, "--output", output, "--max-bad", 0.9)
    assert [entry["line"] for entry in rejected(output)] == [2, 3]
    times = {"utterance": "a cat", "start_time": 0, "end_time": 10**400}
    line = {"image_id": "a", "annotator_id": 1, "timed_caption": [times]}
    rows = write_lines(tmp_path / "n.jsonl", [line, {**line, "timed_caption": [{**times, "end_time": 2}]}])
    arguments = ("--annotations", rows, "--images", tmp_path, "--output", tmp_path / "two", "--pieces", 5)
    prepare("localized-narratives", *arguments, "--name", "{image_id}.jpg", "--max-bad", 0.9)
    assert [entry["line"] for entry in rejected(tmp_path / "two")] == [1]


def test_half_an_emoji_in_an_earlier_dataset_is_mended() -> None:
    row = pack(Record("k", None, ("好\ud83d",), ()), AudioEncoderConfig())
    assert unpack(row, np.uint8, (64,)).captions == ("好\ufffd",)


# files of a gallery


def test_folders_inside_a_gallery_are_entered(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", "a/d/e.png", ".hidden.png", "a/.cache/f.png", "._g.png", "a/note.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = media.find_files(tmp_path, (TEXT, IMAGE, AUDIO))
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["a/c.png", "a/d/e.png", "b.png"]


def test_odd_files_of_a_gallery_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "good.png")
    (tmp_path / "long.txt").write_bytes(b"a" * ((1 << 20) + 1))
    (tmp_path / "mark.txt").write_bytes("\ufeff猫".encode())
    (tmp_path / "bad.jpg").write_bytes(b"DDS |" + bytes(200))
    (tmp_path / "gone.png").symlink_to("nowhere")
    files = [tmp_path / name for name in ("good.png", "long.txt", "mark.txt", "bad.jpg", "gone.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, failures = media.try_files(files, tiny_model())
    assert [medium is not None for medium in found] == [True, False, True, False, False] and len(failures) == 3
    assert found[2].content == "猫"


@pytest.mark.parametrize(
    ("content", "told"), [("红色".encode("gb18030"), "not UTF-8 text"), ("\ufeff \n".encode(), "the text is empty")]
)
def test_a_text_of_a_gallery_is_utf8_and_not_empty(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        media.read_file(tmp_path / "a.txt", tiny_model())
    assert str(caught.value) == f"{tmp_path / 'a.txt'}: {told}"


@pytest.mark.parametrize("name", ["memo.m4a", "photo.jfif", "noending"])
def test_a_file_of_another_kind_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"is a file of another kind: .* \.png .* \.wav .* \.txt"):
        media.read_query(str(tmp_path / name), tiny_model())


@pytest.mark.parametrize(
    ("query", "noted"),
    [("memo.m4a", True), ("a/b.HEIC", True), ("一只猫", False), ("a cat.dog", False), ("3.14", False), ("v2.0", False)],
)
def test_a_text_like_the_name_of_a_file_is_noted(query: str, noted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    medium = media.read_query(query, tiny_model())
    assert (medium.modality, medium.content) == (TEXT, query)
    assert (".png" in capsys.readouterr().err) == noted


# names of any bytes, terminals of any kind


NAMES = (
    "run #3",
    "a: b",
    "[best] run",
    "{x}",
    "@mine",
    "*run",
    "!new",
    "&ref",
    "'q'",
    '"',
    "%p",
    "- x",
    "12",
    "yes",
    "~",
)
NAMES += ("~/x", "猫😀", "\udcba\udcec", "tab\t", "a  b", " lead", "back\\n", "1e3", "2026-01-01", "a\nb", "x" * 240)
NAMES += ("null", "'a' #")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_a_path_whatever_yaml_reads_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: retrieval\n")
    found = load_config(tmp_path / "c.yaml", [path_setting("data.path", name)]).data.path
    assert Path(found) == Path(name) and not Path(found).is_absolute()
    (vocab,) = own_files(Path(name))
    assert Path(load_config(tmp_path / "c.yaml", [vocab]).model.text.vocab) == Path(name) / "vocab.txt"


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoints_network_is_the_same_under_another_configuration(name: str, tmp_path: Path) -> None:
    config = load_config(None, ["task=vqa", path_setting("model.answers", name)])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "c.yaml").write_text("task: vqa\n")
    assert load_checkpoint_config(tmp_path, config_file=tmp_path / "c.yaml").model.answers == config.model.answers


def test_a_tilde_is_a_home_or_part_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home of mine")
    for text, path in (("~/data", "/home of mine/data"), ("~", "/home of mine"), ("a/~", "a/~")):
        assert resolve(text, shipped=False) == path
    for text in ("~no_such_user/data", "config/a~"):
        assert resolve(text, shipped=False) == text


def test_json_holds_names_of_any_bytes(tmp_path: Path) -> None:
    names = [os.fsdecode(b"\xba\xec.png"), "猫😀.png"]
    write_json(tmp_path / "a.json", names)
    assert json.loads((tmp_path / "a.json").read_bytes()) == names
    write_json(tmp_path / "a.json", names[1:])
    assert names[1] in (tmp_path / "a.json").read_text(encoding="utf-8")  # readable where it can be


def test_figures_hold_names_of_any_bytes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        retrieval_sheet(tmp_path / "a.png", "\udcba", [("紅底貓😀\udcba", [("\udcba.png", None, 0.5, False)])])
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_plots_hold_names_of_any_bytes(tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"\xba")
    run.mkdir()
    write_lines(run / "metrics.jsonl", [{"step": step, "loss": 1.0} for step in (1, 2)])
    loss_curves(run / "metrics.jsonl", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def made_gallery(folder: Path, names: list[str]) -> gallery.Gallery:
    count = len(names)
    stamps, vectors = np.arange(2 * count).reshape(count, 2), np.eye(count, 12, dtype=np.float32)
    return gallery.Gallery(folder, names, stamps, vectors)


def test_an_index_holds_names_of_any_bytes_and_number(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xba\xec")
    folder.mkdir()
    kept = made_gallery(folder, [os.fsdecode(b"\xff.png"), "a/b #1.png", "猫" * 2_000_000])
    gallery.keep(tmp_path / "i", kept, "f" * 64)
    found = gallery.load(tmp_path / "i", "f" * 64)
    assert (found.folder, found.names) == (kept.folder, kept.names)
    assert np.array_equal(found.stamps, kept.stamps) and np.array_equal(found.embeddings, kept.embeddings)
    header = int.from_bytes((tmp_path / "i").read_bytes()[:8], "little")
    assert header < 10_000  # safetensors reads no header of more than 100 MB


def test_a_changed_byte_of_an_index_is_seen(tmp_path: Path) -> None:
    """Wherever it is: in a vector, a stamp, a name."""
    path = tmp_path / "i"
    gallery.keep(path, made_gallery(tmp_path, ["a.png", "b.png"]), "f")
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in range(start, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match="is no index of a gallery, or damaged"):
            gallery.load(path, "f")


def test_a_file_that_changed_is_read_again_even_if_it_is_as_long(tmp_path: Path) -> None:
    folder, index = tmp_path / "files", tmp_path / "i"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("猫")
    found = gallery.plan(folder, None, "f")
    vectors = np.eye(2, 12, dtype=np.float32)
    gallery.keep(index, gallery.Gallery(folder, ["a.txt", "b.txt"], found.stamps, vectors), "f")
    assert found.fresh == 2 and gallery.plan(None, index, "f").fresh == 0
    (folder / "b.txt").write_text("狗")
    os.utime(folder / "b.txt", ns=(1, 1))
    assert (gallery.plan(None, index, "f").known < 0).tolist() == [False, True]


def test_an_earlier_index_is_read(tmp_path: Path) -> None:
    from safetensors.numpy import save

    kept = made_gallery(tmp_path, ["a.png", "猫.png"])
    about = {"format": "1", "checkpoint": "f", "folder": str(tmp_path), "names": json.dumps(kept.names)}
    (tmp_path / "i").write_bytes(save({"embeddings": kept.embeddings, "stamps": kept.stamps}, about))
    found = gallery.load(tmp_path / "i", "f")
    assert (found.folder, found.names) == (tmp_path, kept.names)


def test_an_index_of_a_later_version_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = made_gallery(tmp_path, ["a.png"])
    gallery.keep(tmp_path / "i", kept, "f")
    assert gallery.load(tmp_path / "i", "f").names == ["a.png"]
    with monkeypatch.context() as later:
        later.setattr(gallery, "FORMAT", "3")
        gallery.keep(tmp_path / "i", kept, "f")
    with pytest.raises(
        DataError, match=r"is no index of a gallery, or damaged: make one with --gallery FOLDER --save-i"
    ):
        gallery.load(tmp_path / "i", "f")


COMMAND = """
import sys
from src import cli
def main():
    for number in range(20000):
        print("\\udcba 猫", number)
    print("猫", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
cli.run(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8:strict"])
def test_work_ends_after_its_reader_has_gone(tmp_path: Path, encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout.readline().startswith(b"\\udcba ")
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0 and (tmp_path / "out").read_text() == "done"
    assert b"Traceback" not in errors and b"Broken" not in errors


def test_a_path_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.run(lambda: (tmp_path / ("a" * 300)).read_bytes())
    assert capsys.readouterr().err.endswith("File name too long (give a shorter path)\n")


# texts of no words


def test_references_of_punctuation_are_left_out() -> None:
    """Of three images one has no other reference: two are measured, one of them by its other caption alone."""
    texts = ["。", "红底，一只猫", "？！", "绿底"]
    numbers = np.array([0, 1, 1, 2])
    records = [Record(str(at), b"", (text,), ()) for at, text in enumerate(texts)]
    dataset = SimpleNamespace(
        samples=np.stack([np.arange(4), np.zeros(4, int), numbers], 1),
        info={"about": {}},
        read=lambda indices: (records[index] for index in indices),
    )
    tokens, mask = np.zeros((4, 1, 2), np.float32), np.ones((4, 1), np.int32)
    written = Items(tokens, mask, tokens[:, 0], numbers, np.arange(4))
    images = Items(tokens, mask, tokens[:, 0], np.arange(3), np.array([0, 1, 3])).take(np.arange(3))
    engine = SimpleNamespace(caption=lambda items: [["猫", "一只猫", "绿底"][number] for number in items.images])
    split = Split("test", EvalConfig(), SimpleNamespace(dataset=dataset), {TEXT: written, IMAGE: images})
    found = CaptionEvaluator(engine).run(split)
    assert found["caption"]["images"] == 2
    assert found["examples"] == [
        {"caption": "一只猫", "references": ["红底，一只猫"]},
        {"caption": "绿底", "references": ["绿底"]},
    ]


@pytest.mark.parametrize("name", ["run #3 [a]: {x} * 猫%p?", "~", "\udcba"])
def test_a_dataset_in_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text('{"id": "1", "caption": "猫", "split": "train"}\n')
    arguments = ("manifest", "--input", "m.jsonl", "--output", f"./{name}", "--workers", 1)
    if name.isprintable():
        prepare(*arguments)
        assert read(tmp_path / name, "train")["1"].captions == ("猫",)
        return
    with pytest.raises(DataError, match="MindRecord takes only paths that are UTF-8"):
        prepare(*arguments)
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    """Editors on Windows write one, and end lines in their way."""
    path = tmp_path / "captions.tsv"
    path.write_bytes("\ufeff1.png\t猫\r\n\r\n2.png\t\ufeff狗\n".encode())
    assert list(read_lines(path)) == [(1, "1.png\t猫"), (3, "2.png\t\ufeff狗")]
