"""Does the map of a word point at its object? On test scenes of the demo, whose renderer knows where objects stand.

    python -m benchmarks.match_map
    python -m benchmarks.match_map --scenes 20 --checkpoint runs/demo/pretrain

Scenes of two objects in the two halves of the image; the word is an object's name, the text the scene's caption. *half*
is the share of words whose map has its largest value in the object's half, *mass* the share of the map's positive
values that lies there, *object* the share of largest values on a patch with a pixel of such an object. Beside the maps
of ``Model.match_map`` stand others of the same network. Of speech it is the share of largest values inside the word, or
one token beside it; where words begin and end is taken from the length of what is spoken up to there.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import Tensor

from src.data.schema import AUDIO, IMAGE, TEXT
from src.demo import speech
from src.demo.captions import write_caption
from src.demo.render import render
from src.demo.world import Scene, sample_scenes
from src.inference import load
from src.inference.inputs import read_item
from src.inference.library import Model
from src.inference.media import Medium
from src.models.layers import Attention, padding_bias
from src.report.tables import table

SIDE, PATCH = 8, 8  # patches of the demo's image, and their pixels
HALVES = {"左": np.s_[:, :4], "右": np.s_[:, 4:], "上": np.s_[:4], "下": np.s_[4:]}
DIFFERENT = 40  # in any channel, of a pixel that is not background


class Maps:
    """Maps of a word over the patches of an image, by several methods; a pair of text and image at a time."""

    def __init__(self, model: Model, text: str, image: np.ndarray) -> None:
        self.network, engine = model.engine.model, model.engine
        medium = read_item(image, IMAGE, "image", model.config.model)
        self.found = model.match_map(text, image=medium)
        self.item, self.ids = engine.encode([medium]), engine.encode([Medium(text, TEXT, text)]).ids
        self.text_tokens = engine.encode([Medium(text, TEXT, text)]).tokens[0]
        self.embed = lambda word: Tensor(engine.encode([Medium(word, TEXT, word)]).embeddings)
        with recorded() as weights:
            whole = self.log_likelihood(Tensor(self.item.tokens), self.item.mask).asnumpy()
        # [CLS], absent text, patches, absent audio
        self.attention = [part.asnumpy()[0, :, :, 2:-1].mean(0) for part in weights if part.shape[2] != part.shape[3]]
        at = np.indices((SIDE, SIDE)).reshape(2, -1)
        self.lost = {}
        for reach in (0, 1):
            hidden = np.abs(at[:, :, None] - at[:, None]).max(0) <= reach
            tokens = Tensor(np.repeat(self.item.tokens, len(hidden), 0))
            self.lost[reach] = (whole - self.log_likelihood(tokens, (~hidden).astype(np.int32)).asnumpy()).T

    def log_likelihood(self, tokens: Tensor, mask: np.ndarray) -> Tensor:
        """(B, P, D), (B, P) → ln p of every token of the text (B, T−1)."""
        network = self.network
        fused, fused_mask = network.cross_encoder.fuse_single_modality(tokens, Tensor(mask), IMAGE)
        memory = network.text_decoder.read(fused, Tensor(network.cross_encoder.single_modality_positions(IMAGE)))
        ids = Tensor(np.repeat(self.ids, len(mask), 0))
        return network.text_decoder.log_probabilities(ids, memory, padding_bias(fused_mask))

    def of(self, word: str) -> Iterator[tuple[str, np.ndarray]]:
        """Names of methods, and maps [P]."""
        pieces = self.found.tokens
        start = next(at for at in range(len(pieces)) if "".join(pieces[at : at + len(word)]) == word)
        own = np.arange(start, start + len(word))
        yield "match_map: last cross-attention of the text decoder", self.found.of(word).reshape(-1)
        for layer, weights in enumerate(self.attention[:-1], 1):
            yield f"its layer {layer}", weights[own].mean(0)
        yield "log-likelihood that is lost, a patch hidden", self.lost[0][own].sum(0)
        yield "the same, 3×3 patches hidden", self.lost[1][own].sum(0)
        chosen = np.zeros((1, self.ids.shape[1] - 1), np.float32)
        chosen[0, own] = 1
        likelihood = self.by_gradient(lambda x: (self.log_likelihood(x, self.item.mask) * Tensor(chosen)).sum())
        yield "gradient × activation, log-likelihood", likelihood
        mask, vector = Tensor(self.item.mask), self.embed(word)
        cosine = self.by_gradient(lambda x: (self.network.embed_image(x, mask) * vector).sum())
        yield "gradient × activation, cosine of image and word", cosine
        patches = self.network.image_head.project(Tensor(self.item.tokens[0])).asnumpy()
        meant = self.network.text_head.project(Tensor(self.text_tokens[own + 1])).asnumpy().mean(0)
        yield "cosine of projected patch and word", patches @ meant / np.linalg.norm(patches, axis=1)

    def by_gradient(self, score) -> np.ndarray:
        """[P]: the products of tokens and their gradients, summed over the width."""
        return (ms.grad(score)(Tensor(self.item.tokens)).asnumpy()[0] * self.item.tokens[0]).sum(1)


@contextmanager
def recorded() -> Iterator[list]:
    """The weights (B, H, Lq, Lk) of all attention inside the block, in their order."""
    found, plain = [], Attention.mix_values

    def mix(self, queries, keys, values, bias):
        scores = self.scores(queries, keys)
        mixed, weights = self.kernel(scores if bias is None else scores + bias, values)
        found.append(weights)
        return mixed

    Attention.mix_values = mix
    try:
        yield found
    finally:
        Attention.mix_values = plain


def standing(scene: Scene, image: np.ndarray, place: str) -> tuple[np.ndarray, np.ndarray]:
    """The patches of an item's half and those that hold a pixel of its objects, bool [P] each."""
    half = np.zeros((SIDE, SIDE), bool)
    half[HALVES[place]] = True
    ground = np.median(image.reshape(-1, 3), 0)
    drawn = (np.abs(image - ground).max(2) > DIFFERENT).reshape(SIDE, PATCH, SIDE, PATCH).any((1, 3))
    return half.reshape(-1), (half & drawn).reshape(-1)


def measure_images(model: Model, scenes: list[Scene]) -> list[list]:
    """A row for each method, and one for chance."""
    rows = defaultdict(list)
    for scene in scenes:
        image = render(scene)
        maps = Maps(model, write_caption(scene), image)
        for item in scene.facts.items:
            half, own = standing(scene, image, item.place)
            rows["chance"].append((half.mean(), half.mean(), own.mean()))
            for method, values in maps.of(item.name):
                positive, top = np.maximum(values, 0), values.argmax()
                rows[method].append((half[top], positive[half].sum() / positive.sum(), own[top]))
    return [[method, *np.mean(found, 0).tolist()] for method, found in rows.items()]


def measure_speech(model: Model, scenes: list[Scene]) -> tuple[float, float]:
    """The share of largest values inside their word, and that of the clip's tokens that are."""
    audio, texts = model.config.model.audio, [write_caption(scene) for scene in scenes]
    words = [[item.name for item in scene.facts.items] for scene in scenes]
    voice = speech.Voice("cmn", 300, 50)
    clips = speech.run_worker(texts, audio, voice)
    pairs = [(text, word) for text, own in zip(texts, words, strict=True) for word in own]
    starts = [text[: text.index(word)] or "，" for text, word in pairs]
    stops = [text[: text.index(word) + len(word)] for text, word in pairs]
    spoken = [len(clip) / audio.stride for clip in speech.run_worker([*starts, *stops], audio, voice)]
    spans = iter(zip(spoken[: len(pairs)], spoken[len(pairs) :], strict=True))
    hits, chances = [], []
    for text, clip, own in zip(texts, clips, words, strict=True):
        found = model.match_map(text, audio=Medium("clip", AUDIO, clip[: audio.length]))
        for word in own:
            values, (first, last) = found.of(word), next(spans)
            at = np.arange(len(values)) + 0.5
            inside = (at >= first - 1) & (at <= last + 1)
            hits.append(inside[values.argmax()])
            chances.append(inside.mean())
    return float(np.mean(hits)), float(np.mean(chances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="opt_demo")
    parser.add_argument("--world", default="demo_full", help="of the scenes (default: demo_full)")
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    model = load(args.checkpoint, ["runtime.mode=pynative"])
    scenes = [scene for scene in sample_scenes(args.world, "test", 4 * args.scenes, 0) if len(scene.facts.items) == 2]
    scenes = scenes[: args.scenes]
    print(table(measure_images(model, scenes), [f"{2 * len(scenes)} words", "half", "mass", "object"]), end="\n\n")
    if speech.available():
        found, chance = measure_speech(model, scenes)
        print(f"speech: {found:.3f} of the largest values inside their word, chance {chance:.3f}")


if __name__ == "__main__":
    main()
