"""The page: tabs, inputs and what happens when a visitor asks. Every answer is HTML of src.web.cards."""

import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.components import Component
from gradio.utils import get_upload_folder

from src.data.schema import AUDIO
from src.errors import UserError
from src.inference.images import check_generates
from src.inference.media import MODALITY
from src.inference.questions import check_answers
from src.web import cards
from src.web.cards import Words
from src.web.service import MOST_HITS, MOST_SAMPLES, Service
from src.web.texts import LANGUAGES, NAMES, texts
from src.web.words import matched

HITS, COMPARED = 8, 4  # shown unless a visitor wants more; of each of two models
KEPT_SECONDS = 600  # that an uploaded file stays
CHECK_SECONDS = 60
WAITING = 32  # requests at most


def build(service: Service, language: str) -> gr.Blocks:
    """The page in one of the languages."""
    words = texts(language)
    with gr.Blocks(title=words["title"], analytics_enabled=False, delete_cache=(CHECK_SECONDS, KEPT_SECONDS)) as page:
        gr.HTML(_head(service, words, language))
        with gr.Tabs():
            tabs = TABS | ({"compare": _compare_tab} if len(service.shown) > 1 else {})
            for name, add in tabs.items():
                with gr.Tab(words[name], id=name, elem_id=f"tab-{name}"):
                    add(service, words)
    for block in page.blocks.values():
        if isinstance(block, Component):
            block.async_move_resource_to_block_cache = _only_uploads
    return page.queue(max_size=WAITING)


async def _only_uploads(named: str | Path | None) -> str | None:
    """What a request may name as a file: an upload.

    gradio copies whatever file of the machine, and fetches whatever address, a request names, where its page is mounted
    in another application: its own check waits for ``launch``.
    """
    if named is None:
        return None
    path = Path(named).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("this is no uploaded file")
    return str(path)


def _head(service: Service, words: Words, language: str) -> str:
    names = " · ".join(cards.escape(shown.name) for shown in service.shown)
    said = words["subtitle"].format(model=names, count=len(service.shown[0].offered.names))
    links = "".join(
        f'<a href="/{name}/" lang="{name}"{" aria-current=page" if name == language else ""}>{NAMES[name]}</a>'
        for name in LANGUAGES
    )
    return f'<header class="opt-head"><h1>{words["title"]}</h1><nav>{links}</nav><p>{said}</p></header>'


def _search_tab(service: Service, words: Words) -> None:
    shown = service.shown[0]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            with gr.Tabs(elem_classes="opt-ways"):
                with gr.Tab(words["by_text"]):
                    text = _textbox(words["query"], words["text_hint"], "search-text")
                    button = gr.Button(words["do_search"], variant="primary", elem_id="search-button")
                    _examples(shown.examples, text, words)
                with gr.Tab(words["by_image"], elem_id="by-image"):
                    image = _image(words["image"], "search-image")
                with gr.Tab(words["by_speech"], elem_id="by-speech"):
                    clip = _audio(words["speech"], "search-speech")
            top = gr.Slider(1, MOST_HITS, HITS, step=1, label=words["top"], elem_id="search-top")
        with gr.Column(scale=5, min_width=300):
            answer = _answer(cards.offered(words, shown), "search-answer")

    def search(query: str | None, count: int, missing: str) -> str:
        if not query or not query.strip():
            return cards.message(words, "error", words[missing])
        item = query if missing == "no_text" else Path(query)
        return cards.found(words, shown, service.search(item, int(count)))

    for query, missing, events in (
        (text, "no_text", (text.submit, button.click)),
        (image, "no_image", (image.upload,)),
        (clip, "no_speech", (clip.upload, clip.stop_recording)),
    ):
        _on(words, events, partial(search, missing=missing), [query, top], answer)


def _describe_tab(service: Service, words: Words) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = _image(words["image"], "describe-image")
            clip = _audio(words["speech"], "describe-speech")
            button = gr.Button(words["do_describe"], variant="primary", elem_id="describe-button")
        with gr.Column(scale=3, min_width=300):
            answer = _answer("", "describe-answer")

    def describe(image: str | None, clip: str | None) -> str:
        if not image and not clip:
            return cards.message(words, "error", words["no_input"])
        told = service.describe(_path(image), _path(clip))
        labels = [words[label] for label, given in (("caption", image), ("transcript", clip)) if given]
        return cards.told(labels, told, words)

    _on(words, (button.click,), describe, [image, clip], answer)


def _ask_tab(service: Service, words: Words) -> None:
    if lacks := service.lacks(check_answers):
        gr.HTML(cards.message(words, "note", f"{words['lacks']} {lacks}"))
        return
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = _image(words["image"], "ask-image")
            text = _textbox(words["question"], words["text_hint"], "ask-text")
            clip = _audio(words["speech"], "ask-speech")
            button = gr.Button(words["do_ask"], variant="primary", elem_id="ask-button")
        with gr.Column(scale=3, min_width=300):
            answer = _answer("", "ask-answer")

    def ask(image: str | None, text: str, clip: str | None) -> str:
        if not image:
            return cards.message(words, "error", words["no_image"])
        if not text.strip() and not clip:
            return cards.message(words, "error", words["no_question"])
        return cards.told([words["answer"]], service.ask(Path(image), text if text.strip() else Path(clip)), words)

    _on(words, (text.submit, button.click), ask, [image, text, clip], answer)


def _generate_tab(service: Service, words: Words) -> None:
    if lacks := service.lacks(check_generates):
        gr.HTML(cards.message(words, "note", f"{words['lacks']} {lacks}"))
        return
    settings = service.shown[0].config
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            text = _textbox(words["prompt"], words["text_hint"], "generate-text")
            _examples(service.shown[0].examples, text, words)
            clip = _audio(words["speech"], "generate-speech")
            samples = gr.Slider(1, MOST_SAMPLES, 4, step=1, label=words["samples"], elem_id="generate-samples")
            usual = settings.eval.image_generation.guidance
            guidance = gr.Slider(0, 10, usual, step=0.5, label=words["guidance"], elem_id="generate-guidance")
            seed = gr.Number(settings.seed, precision=0, minimum=0, label=words["seed"], elem_id="generate-seed")
            button = gr.Button(words["do_generate"], variant="primary", elem_id="generate-button")
        with gr.Column(scale=3, min_width=300):
            answer = _answer("", "generate-answer")

    def generate(text: str, clip: str | None, samples: int, guidance: float, seed: int) -> str:
        if not text.strip() and not clip:
            return cards.message(words, "error", words["no_prompt"])
        prompt = text if text.strip() else Path(clip)
        return cards.made(words, service.generate(prompt, int(samples), float(guidance), int(seed)))

    _on(words, (text.submit, button.click), generate, [text, clip, samples, guidance, seed], answer)


def _match_tab(service: Service, words: Words) -> None:
    shown = service.shown[0]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            text = _textbox(words["told"], words["text_hint"], "match-text")
            _examples(shown.examples, text, words)
            image = _image(words["image"], "match-image")
            clip = _audio(words["speech"], "match-speech")
            button = gr.Button(words["do_match"], variant="primary", elem_id="match-button")
        with gr.Column(scale=3, min_width=300):
            answer = _answer("", "match-answer")

    def match(text: str, image: str | None, clip: str | None) -> str:
        if bool(image) == bool(clip):
            return cards.message(words, "error", words["no_either"])
        return matched(words, shown, service.match(text, _path(image), _path(clip)))

    _on(words, (text.submit, button.click), match, [text, image, clip], answer)


def _compare_tab(service: Service, words: Words) -> None:
    with gr.Row():
        text = _textbox(words["by_text"], words["text_hint"], "compare-text")
        image = _image(words["image"], "compare-image")
        clip = _audio(words["speech"], "compare-speech")
    button = gr.Button(words["do_compare"], variant="primary", elem_id="compare-button")
    answer = _answer("", "compare-answer")

    def compare(text: str, image: str | None, clip: str | None) -> str:
        given = [item for item in (text.strip(), _path(image), _path(clip)) if item]
        if len(given) != 1:
            return cards.message(words, "error", words["no_one"])
        return cards.pair(one_answer(service, words, which, given[0]) for which in range(len(service.shown)))

    _on(words, (text.submit, button.click), compare, [text, image, clip], answer)


def one_answer(service: Service, words: Words, which: int, item: str | Path) -> tuple[str, str]:
    """A model's name, and what it says of a text, an image or an audio clip and finds for it."""
    shown, said = service.shown[which], ""
    if isinstance(item, Path):
        heard = MODALITY.get(item.suffix.lower()) == AUDIO
        told = service.describe(None, item, which) if heard else service.describe(item, None, which)
        said = cards.told([words["transcript" if heard else "caption"]], told, words)
    return shown.name, said + cards.found(words, shown, service.search(item, COMPARED, which))


TABS: dict[str, Callable[[Service, Words], None]] = {
    "search": _search_tab,
    "describe": _describe_tab,
    "ask": _ask_tab,
    "generate": _generate_tab,
    "match": _match_tab,
}


def _on(words: Words, events: tuple, answer: Callable[..., str], inputs: list, output: gr.HTML) -> None:
    """Answers events; what goes wrong is a sentence."""

    def guarded(*given):
        try:
            return answer(*given)
        except UserError as error:
            return cards.message(words, "error", str(error))
        except Exception:  # a defect: whoever runs the page sees where
            traceback.print_exc(file=sys.stderr)
            return cards.message(words, "error", words["failed"])

    for event in events:
        event(guarded, inputs, output, api_visibility="private", show_progress="minimal")


def _textbox(label: str, hint: str, name: str) -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=hint, max_length=2000, elem_id=name)


def _image(label: str, name: str) -> gr.Image:
    image = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=220,
        buttons=[],
        elem_id=name,
        elem_classes="opt-upload",
    )
    image.preprocess = _uploaded  # the library reads it, and says what is wrong with it
    return image


def _audio(label: str, name: str) -> gr.Audio:
    audio = gr.Audio(
        label=label,
        type="filepath",
        sources=["upload", "microphone"],
        editable=False,  # the editor would be fetched from elsewhere
        buttons=[],
        elem_id=name,
        elem_classes="opt-audio",
    )
    audio.preprocess = _uploaded
    return audio


def _uploaded(payload) -> str | None:
    """Where an uploaded file lies, unopened."""
    return payload.path if payload else None


def _examples(found: list[str], text: gr.Textbox, words: Words) -> None:
    if found:
        gr.Examples([[example] for example in found], [text], label=words["examples"], api_visibility="private")


def _answer(first: str, name: str) -> gr.HTML:
    return gr.HTML(first, elem_id=name, elem_classes="opt-answer", apply_default_css=False)


def _path(file: str | None) -> Path | None:
    return Path(file) if file else None
