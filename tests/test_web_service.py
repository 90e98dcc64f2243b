"""What stands behind the page: one thread for all models, what they lack, what visitors may send, what is escaped."""

import base64
import contextlib
import io
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

if find_spec("gradio") is None:
    pytest.skip("the page is not tested: no gradio here", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have another client, which gradio does not bring
    import uvicorn
    from starlette.testclient import TestClient

from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, ConfigError
from src.data.errors import DataError
from src.data.regions import Regions
from src.data.schema import AUDIO, IMAGE, TEXT
from src.files import ROOT
from src.inference import gallery as galleries
from src.inference import load
from src.inference.library import Model
from src.inference.media import Medium
from src.inference.results import Generated, MatchMap
from src.models.build import build_model
from src.web import cards, page, server, texts, words
from src.web.server import WebError
from src.web.service import MOST_SAMPLES, Made, Matched, Service, Told, open_service
from src.web.worker import Worker
from tests.conftest import tiny_dataset
from tests.oracles import tiny_model

GALLERY = ROOT / "assets" / "gallery"
QUERY = "红底，左边一只猫，右边两个苹果"  # of 01.png and speech.wav
MARKUP = "<img src=x onerror=alert(1)>"
ENGLISH = texts.texts("en")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    for name in ("01.png", "05.png", "06.png", "speech.wav"):
        shutil.copy(GALLERY / name, folder / name)
    shutil.copy(GALLERY / "07.png", folder / f"{MARKUP}.png")
    (folder / "text.txt").write_text(MARKUP, encoding="utf-8")
    return folder


def opened(*given) -> Service:
    worker = Worker()
    return worker.call(open_service, worker, *given)


def test_an_index_is_of_the_first_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others encode the gallery, if need be the index's: another model's embeddings are nothing to them."""
    offered = SimpleNamespace(folder=Path("photos"))
    monkeypatch.setattr("src.web.service._open", lambda *given: SimpleNamespace(given=given, offered=offered))
    settings = (["seed=2"], True)
    for gallery in (Path("photos"), None):
        service = opened([Path("a"), Path("b"), Path("c")], gallery, Path("kept.index"), *settings)
        assert [shown.given for shown in service.shown] == [
            (Path("a"), gallery, Path("kept.index"), *settings),
            (Path("b"), Path("photos"), None, *settings),
            (Path("c"), Path("photos"), None, *settings),
        ]


def test_settings_reach_the_model_whatever_the_gallery(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few files are encoded without compiled graphs."""
    asked: list[object] = []

    def load_model(place: Path, settings: list[str], ema: bool) -> None:
        asked.extend(settings)
        raise DataError("enough")

    monkeypatch.setattr("src.web.service.load", load_model)
    with contextlib.closing(Worker()) as worker, pytest.raises(DataError, match="enough"):
        worker.call(open_service, worker, [Path("opt_demo")], gallery, None, ["eval.decoding.beam_size=5"])
    assert asked == ["runtime.mode=pynative", "eval.decoding.beam_size=5"]


@pytest.fixture(scope="module")
def service(gallery: Path) -> Iterator[Service]:
    service = opened([Path("opt_demo")], gallery, None)
    yield service
    service.worker.close()


@pytest.fixture(scope="module")
def other(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A network that was not trained, beside the bundled one."""
    folder = tmp_path_factory.mktemp("other")
    config = tiny_dataset(folder / "made", 8, Config(model=tiny_model()))
    save_checkpoint(folder / "run" / "checkpoints", 3, config, build_model(config))
    service = opened([folder / "run", Path("opt_demo")], gallery, None)
    yield service
    service.worker.close()


# answers are the library's


def test_the_page_answers_as_the_library(service: Service, gallery: Path) -> None:
    model = load("opt_demo", ["runtime.mode=pynative"])
    images = sorted(gallery.glob("*.png"))
    found = service.search(QUERY, 3)
    expected = model.rank(QUERY, images, 3)
    assert [hit.medium.name for hit in found.hits[IMAGE]] == [hit.medium.name for hit in expected]
    assert [hit.share for hit in found.hits[IMAGE]] == pytest.approx([hit.share for hit in expected], abs=1e-5)
    assert {TEXT, IMAGE, AUDIO} == found.hits.keys() and not found.notes
    image, clip = gallery / "01.png", gallery / "speech.wav"
    both = service.describe(image, clip)
    assert both.texts == [*model.caption([image]), *model.transcribe([clip], [image])]
    assert service.describe(None, clip).texts == model.transcribe([clip])
    made, same = (service.generate(QUERY, 2, 0.0, 3).generated for _ in range(2))
    (expected,) = model.generate_image([QUERY], seed=3, samples=2, guidance=0.0)
    assert (made.images == expected.images).all() and (same.images == made.images).all()
    assert len(service.generate(QUERY, 99, 0.0, 3).generated.images) == MOST_SAMPLES
    matched = service.match(" ", image, None)  # of the model's own caption
    assert (matched.found.weights == model.match_map(model.caption([image])[0], image=image).weights).all()
    assert service.shown[0].examples == model.caption(images[:3])


def test_an_index_spares_the_gallery(service: Service, gallery: Path, tmp_path: Path, monkeypatch) -> None:
    offered, config = service.shown[0].offered, service.shown[0].config
    mark = galleries.fingerprint_of(ROOT / "pretrained" / "opt_demo", config.model)
    galleries.keep(tmp_path / "kept.index", offered, mark)
    monkeypatch.setattr(Model, "embed_each", lambda *given: iter(()))
    again = opened([Path("opt_demo")], None, tmp_path / "kept.index")
    again.worker.close()
    assert again.shown[0].offered.names == offered.names
    assert (again.shown[0].offered.embeddings == offered.embeddings).all()


def test_what_is_wrong_with_an_input_is_a_sentence(service: Service, tmp_path: Path) -> None:
    """It names the visitor's file and not where it lies."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    for file in ("bad.png", "drawing.svg", "none.png"):
        with pytest.raises(DataError, match=f"^{file}: ") as caught:
            service.search(tmp_path / file, 3)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(DataError, match="give an image or an audio clip"):
        service.describe(None, None)
    with pytest.raises(DataError, match="give either an image or an audio clip"):
        service.match(QUERY, None, None)
    with pytest.raises(ConfigError, match="task=pretrain: this model was not trained to answer"):
        service.ask(tmp_path / "none.png", QUERY)
    notes = service.search("昨天的会议改到下周三下午三点", 3).notes
    assert any("not in the vocabulary" in note for note in notes) and any("unlike" in note for note in notes)


# one thread


def test_visitors_at_once_are_answered_in_one_thread_by_turns(service: Service, gallery: Path, monkeypatch) -> None:
    spans: list[tuple[str, float, float]] = []

    def recorded(name: str):
        plain = getattr(Model, name)

        def call(self, *given, **options):
            began = time.monotonic()
            try:
                return plain(self, *given, **options)
            finally:
                spans.append((threading.current_thread().name, began, time.monotonic()))

        monkeypatch.setattr(Model, name, call)

    recorded("rank")
    recorded("caption")
    answers: dict[int, object] = {}
    jobs = [lambda: service.search(QUERY, 1).hits[IMAGE][0].medium.name] * 2
    jobs += [lambda: service.describe(gallery / "01.png", None).texts[0]] * 2
    threads = [
        threading.Thread(target=lambda number=number, job=job: answers.__setitem__(number, job()))
        for number, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1] == str(gallery / "01.png") and answers[2] == answers[3]
    assert {name for name, _, _ in spans} == {"model_0"} and len(spans) == 2 * 3 + 2  # a rank for each modality
    spans.sort(key=lambda span: span[1])
    assert all(before[2] <= after[1] for before, after in zip(spans, spans[1:], strict=False))


# what is shown


def rendered(service: Service, language: str = "en") -> dict[str, dict]:
    """Properties of the page's components that have an id."""
    blocks = page.build(service, language)
    found = [component["props"] for component in blocks.get_config_file()["components"]]
    return {props["elem_id"]: props for props in found if props.get("elem_id")} | {
        "": {"value": " ".join(str(props.get("value")) for props in found)}
    }


def test_what_a_model_lacks_is_a_sentence(service: Service, other: Service) -> None:
    bundled, tiny = rendered(service), rendered(other)
    assert "This model cannot do that. task=pretrain: this model was not trained to answer" in bundled[""]["value"]
    assert "generate-button" in bundled and "ask-button" not in bundled and "tab-compare" not in bundled
    assert "This model cannot do that. data.codes is empty" in tiny[""]["value"]
    assert "generate-button" not in tiny and "tab-compare" in tiny


@pytest.fixture(scope="module")
def answering(other: Service) -> dict[str, Callable[..., str]]:
    """What a page with every tab does where a visitor asks in one; of search in that of a text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "lacks", lambda self, check: "")
        blocks = page.build(other, "en")
    events = [(event.outputs[0].elem_id, event.fn) for event in blocks.fns.values() if event.outputs]
    return {name.removesuffix("-answer"): answer for name, answer in reversed(events)}


def said(message: str) -> str:
    return cards.message(ENGLISH, "error", ENGLISH[message])


IMAGE_FILE, CLIP_FILE = "/uploads/01.png", "/uploads/speech.wav"


@pytest.mark.parametrize(
    ("tab", "given", "message"),
    [
        ("search", (" ", 3), "no_text"),
        ("search", (None, 3), "no_text"),
        ("describe", (None, None), "no_input"),
        ("generate", (" ", None, 4, 0.0, 3), "no_prompt"),
        ("match", (QUERY, None, None), "no_either"),
        ("match", (QUERY, IMAGE_FILE, CLIP_FILE), "no_either"),
        ("ask", (None, QUERY, None), "no_image"),
        ("ask", (None, " ", CLIP_FILE), "no_image"),
        ("ask", (IMAGE_FILE, " ", None), "no_question"),
        ("compare", (" ", None, None), "no_one"),
        ("compare", (QUERY, IMAGE_FILE, None), "no_one"),
        ("compare", (" ", IMAGE_FILE, CLIP_FILE), "no_one"),
        ("compare", (QUERY, IMAGE_FILE, CLIP_FILE), "no_one"),
    ],
)
def test_what_is_missing_is_asked_for(answering: dict, tab: str, given: tuple, message: str) -> None:
    """Whatever else is given, and no model is bothered with it."""
    assert answering[tab](*given) == said(message)


@pytest.mark.parametrize(
    ("tab", "given", "asked"),
    [
        ("describe", (IMAGE_FILE, None), [("Caption", f"describe {IMAGE_FILE} None")]),
        ("describe", (None, CLIP_FILE), [("Transcript", f"describe None {CLIP_FILE}")]),
        ("describe", (IMAGE_FILE, CLIP_FILE), [("Caption", "of both"), ("Transcript", "of both")]),
        ("ask", (IMAGE_FILE, QUERY, None), [("Answer", f"ask {IMAGE_FILE} {QUERY}")]),
        ("ask", (IMAGE_FILE, QUERY, CLIP_FILE), [("Answer", f"ask {IMAGE_FILE} {QUERY}")]),
        ("ask", (IMAGE_FILE, " ", CLIP_FILE), [("Answer", f"ask {IMAGE_FILE} {CLIP_FILE}")]),
    ],
)
def test_texts_stand_under_what_they_are_of(
    answering: dict, tab: str, given: tuple, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is typed counts more than one that is spoken."""
    for name in ("describe", "ask"):

        def tell(self, *items, name: str = name) -> Told:
            assert all(isinstance(item, Path) for item in items if item not in (None, QUERY))
            return Told(
                ["of both"] * 2 if None not in items and name == "describe" else [" ".join([name, *map(str, items)])],
                [],
            )

        monkeypatch.setattr(Service, name, tell)
    assert re.findall("<small>(.*?)</small><p>(.*?)</p>", answering[tab](*given)) == asked


@pytest.mark.parametrize(
    ("given", "item"),
    [
        ((f" {QUERY}", None, None), QUERY),
        ((" ", IMAGE_FILE, None), Path(IMAGE_FILE)),
        (("", None, CLIP_FILE), Path(CLIP_FILE)),
    ],
)
def test_one_item_is_compared_by_all_models(
    answering: dict, given: tuple, item: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "one_answer", lambda service, words, which, item: (f"model {which}", repr(item)))
    expected = cards.pair((f"model {which}", repr(item)) for which in (0, 1))
    assert answering["compare"](*given) == expected


def test_a_mistake_is_a_sentence_and_a_defect_says_nothing_of_the_machine(
    answering: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whoever runs the page sees where a defect is."""
    for error, shown in (
        (DataError(f"a.png: {MARKUP}"), cards.message(ENGLISH, "error", f"a.png: {MARKUP}")),
        (RuntimeError("/home/somebody"), said("failed")),
    ):

        def fail(*given, error: Exception = error):
            raise error

        monkeypatch.setattr(Service, "search", fail)
        assert answering["search"](QUERY, 3) == shown and MARKUP not in shown
    assert capsys.readouterr().err.count("RuntimeError: /home/somebody") == 1


def test_a_clip_is_heard_where_browsers_can_and_it_is_not_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have gone since the gallery was encoded; where nothing is to be seen of it, either, its name is shown."""
    monkeypatch.setattr(cards, "MOST_AUDIO", 4)
    for name, content, heard in (
        ("a.wav", b"1234", "data:audio/wav;base64,MTIzNA=="),
        ("b.MP3", b"12", "data:audio/mpeg;base64,MTI="),
        ("c.wav", b"12345", ""),
        ("d.wav", b"", ""),
        ("e.npy", b"12", ""),
        ("f.wav", None, ""),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert cards.player(tmp_path / name) == (f'<audio controls src="{heard}"></audio>' if heard else ""), name
    assert cards.picture(None, MARKUP) == f"<blockquote>{cards.escape(MARKUP)}</blockquote>"


def test_two_models_answer_side_by_side(other: Service, gallery: Path) -> None:
    names, answers = zip(*(page.one_answer(other, ENGLISH, which, QUERY) for which in range(2)), strict=True)
    assert names == tuple(shown.name for shown in other.shown) and answers[0] != answers[1]
    assert answers[1].index('data-name="01.png"') < answers[1].index('data-name="05.png"')
    _, said = page.one_answer(other, ENGLISH, 1, gallery / "speech.wav")
    assert "Transcript" in said and other.describe(None, gallery / "speech.wav", 1).texts[0] in said


def test_generated_images_have_the_scores_that_there_are() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    scored = cards.made(ENGLISH, Made(Generated(images, np.array([0.5, -0.25])), []))
    assert re.findall("<small>(.*?)</small>", scored) == ["score 0.500", "score -0.250"]
    for count in (1, 2):  # two: of a model that reads regions
        shown = cards.made(ENGLISH, Made(Generated(images[:count], np.full(count, np.nan)), []))
        assert shown.count("<figure") == count and "score" not in shown


def test_markup_is_escaped(service: Service) -> None:
    """Of names and contents of files, of what visitors type, and of messages."""
    found = service.search(MARKUP, 9)
    shown = cards.found(ENGLISH, service.shown[0], found) + cards.offered(ENGLISH, service.shown[0])
    shown += cards.message(ENGLISH, "error", MARKUP)
    result = service.match(MARKUP, GALLERY / "01.png", None)
    shown += cards.told(["caption"], Told([MARKUP], [MARKUP]), ENGLISH)
    assert "onerror" in shown and MARKUP not in shown + words.matched(ENGLISH, service.shown[0], result)


def test_a_spectrogram_has_time_to_the_right_and_low_frequencies_at_the_bottom() -> None:
    frames = np.zeros((9, 5), np.float32)
    frames[8, 0] = 1.0  # the last frame, the lowest band
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(cards.data_uri(frames).partition(",")[2]))))
    dark = (shown == shown[0, 0]).all(2)
    assert shown.shape == (5, 9, 3) and np.argwhere(~dark).tolist() == [[4, 8]]


def test_a_map_darkens_what_is_not_looked_at(service: Service) -> None:
    values = np.array([[0.0, 0.2], [0.0, 0.1]])
    image = Medium("a.png", IMAGE, np.zeros((8, 8, 3), np.uint8))
    black = words.shade(image, values)
    darkest = round(255 * words.DARKEST)
    assert black.shape == (2, 2, 4) and not black[..., :3].any()
    assert black[..., 3].tolist() == [[darkest, 0], [darkest, darkest // 2]]
    boxes = np.array([[0, 0, 50, 100], [50, 50, 100, 100]], np.float32)
    regions = Regions(np.zeros((2, 4), np.float16), boxes, np.zeros(2, np.int32), np.zeros(2, np.float32), 100, 100)
    light = words.spread(regions, np.array([1.0, 3.0]))
    half = words.SIDE // 2
    assert (light[:, :half] == 1).all() and (light[half:, half:] == 3).all() and not light[:half, half:].any()
    black = words.shade(Medium("a.npz", IMAGE, regions), np.array([1.0, 2.0]))
    assert black.shape == (words.SIDE, words.SIDE, 4) and black[half - 1, half, 3] == darkest
    assert (black[:, :half, 3] == darkest // 2).all() and not black[half:, half:, 3].any()
    found = MatchMap(["猫", "狗"], np.array([0, 1]), np.log([0.5, 0.25]), np.stack([values, 2 * values]))
    shown = words.matched(ENGLISH, service.shown[0], Matched(found, image, []))
    assert shown.count('type="radio"') == 2 and shown.count(" checked>") == 1 and "<small>25%</small>" in shown
    assert shown.index(" checked>") > shown.index('type="radio"', shown.index('type="radio"') + 1)  # the second


def test_both_languages_say_everything() -> None:
    for key, row in texts.TABLE.items():
        english, chinese = row
        assert english.strip() and chinese.strip(), key
        assert {part for part in ("{count}", "{model}") if part in english} == {
            part for part in ("{count}", "{model}") if part in chinese
        }
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "web").glob("*.py"))
    assert not [key for key in texts.TABLE if sources.count(f'"{key}"') + sources.count(f"'{key}'") < 2]
    for asked, accepted, expected in (
        ("zh", "en", "zh"),
        ("xx", "zh-CN,zh;q=0.9", "zh"),
        (None, "fr, zh;q=0.5", "zh"),
        (None, "", "en"),
        ("en", "zh", "en"),
    ):
        assert texts.language_of(asked, accepted) == expected


# what is served


def test_only_what_was_uploaded_is_served_and_that_not_for_long(service: Service, monkeypatch) -> None:
    monkeypatch.setattr(page, "CHECK_SECONDS", 1)
    monkeypatch.setattr(page, "KEPT_SECONDS", 1)
    monkeypatch.setattr(server, "MOST_UPLOAD", 1000)
    with server.uploads() as folder, TestClient(server.make_app(service), "http://127.0.0.1") as client:
        for path in ("/etc/passwd", ROOT / "README.md", GALLERY / "01.png", f"{folder}/../../etc/passwd"):
            assert client.get(f"/en/gradio_api/file={path}").status_code in (403, 404)
        answer = client.post("/en/gradio_api/upload", files={"files": ("../../a.png", b"0" * 1001)})
        assert answer.status_code == 413
        (place,) = client.post("/en/gradio_api/upload", files={"files": ("../../a.png", b"0" * 999)}).json()
        assert Path(place).is_relative_to(folder) and Path(place).name == "a.png"
        assert client.get(f"/en/gradio_api/file={place}").content == b"0" * 999
        answer = client.get("/", headers={"accept-language": "zh-CN"}, follow_redirects=False)
        assert answer.headers["location"] == "/zh/"
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        icon = client.get("/favicon.ico")
        assert (icon.status_code, icon.content) == (204, b""), "none, and no error in a browser's console"
        assert client.get("/font.otf").content == server.FONT.read_bytes()
        assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
        until = time.monotonic() + 30
        while Path(place).exists():
            assert time.monotonic() < until, "uploads stay"
            time.sleep(0.2)
    assert not folder.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of gradio's use of pandas
def test_a_visitor_names_no_file_of_the_machine(service: Service, monkeypatch) -> None:
    """Nor an address: what is not uploaded is neither read nor copied to where it is served, in whatever input."""
    asked: list[Path] = []

    def search(self, query, top):
        asked.append(query)
        raise DataError("asked")

    monkeypatch.setattr(Service, "search", search)
    with server.uploads() as folder, TestClient(server.make_app(service), "http://127.0.0.1") as client:
        config = client.get("/en/config").json()
        names = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
        inputs = [[names[component] for component in event["inputs"]] for event in config["dependencies"]]

        def ask(event: list[str], **file: str) -> str:
            given = file | {"orig_name": "01.png", "meta": {"_type": "gradio.FileData"}} if file else None
            body = {"data": [given, 3], "fn_index": inputs.index(event), "session_hash": "visitor"}
            assert client.post("/en/gradio_api/queue/join", json=body).status_code == 200
            return client.get("/en/gradio_api/queue/data", params={"session_hash": "visitor"}).text

        by_image = ["search-image", "search-top"]
        for path in (GALLERY / "01.png", f"{folder}/../../../{GALLERY}/01.png", "http://127.0.0.1:9/01.png"):
            for event in (by_image, ["search-text", "search-top"], by_image):
                assert "this is no uploaded file" in ask(event, path=str(path))
        assert "Give an image first." in ask(by_image)
        assert not list(folder.rglob("*.png")) and not asked
        (place,) = client.post("/en/gradio_api/upload", files={"files": ("01.png", b"")}).json()
        assert "this is no uploaded file" not in ask(by_image, path=place)
        assert asked == [Path(place)]


def test_a_port_in_use_is_one_line() -> None:
    with server.listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(WebError, match=f"port {port} of 127.0.0.1 is in use: choose another with --port"):
            server.listen("127.0.0.1", port)
        command = [sys.executable, str(ROOT / "tools" / "web.py"), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "choose another with --port" in done.stderr
    for host, port in (("nowhere.invalid", 0), ("127.0.0.1", 70000)):
        with pytest.raises(WebError, match=f"--host {host} --port {port}: "):
            server.listen(host, port)


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 400), ("127.0.0.2", 400), ("::1", 400), ("0.0.0.0", 307)])
def test_a_page_of_this_machine_alone_is_none_of_another_site(
    service: Service, monkeypatch: pytest.MonkeyPatch, host: str, status: int
) -> None:
    """Another site's name may lead to this machine (DNS rebinding)."""
    apps = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: apps.append(self.config.app))
    with server.listen(host, 0) as bound:
        server.serve(service, bound)
    client, own = TestClient(apps[0]), f"[{host}]:7860" if ":" in host else f"{host}:7860"
    assert client.get("/", headers={"host": "elsewhere.example"}, follow_redirects=False).status_code == status
    assert client.get("/", headers={"host": own}, follow_redirects=False).status_code == 307


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(WebError, match="gradio is not installed: pip install -r requirements-web.txt"):
        server.check_packages()
    pins = (ROOT / "requirements-web.txt").read_text().splitlines()
    assert pins[0] == "-r requirements.txt" and pins[1] in (ROOT / "requirements-dev.txt").read_text().splitlines()


def test_others_are_let_in_with_a_warning(capsys: pytest.CaptureFixture) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        server.warn_of(host)
    assert capsys.readouterr().err == ""
    server.warn_of("0.0.0.0")
    assert "whoever reaches this machine" in capsys.readouterr().err


def test_the_worker_ends_when_its_call_has_ended() -> None:
    worker, began, done = Worker(), threading.Event(), []
    caller = threading.Thread(target=lambda: done.append(worker.call(lambda: began.set() or time.sleep(0.2) or "done")))
    caller.start()
    began.wait()
    worker.close()
    caller.join()
    assert done == ["done"]
    with pytest.raises(RuntimeError):
        worker.call(int)
