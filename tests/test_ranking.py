"""Retrieval and re-ranking against a slow ranking by hand, with tables in the place of the network's scores."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from src.config import EvalConfig, RerankConfig, RetrievalConfig
from src.data.errors import DataError
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation import sheets, tuning
from src.evaluation.evaluator import Split
from src.evaluation.relevance import relevance
from src.evaluation.retrieval import RetrievalEvaluator, _mean
from src.evaluation.tuning import grid
from src.inference.encode import Items
from src.inference.rerank import Ranking, Reranker, softmax
from src.inference.scorers import _chunks
from src.metrics.recall import recall

SCALE = 5.0
IMAGES = np.array([4, 0, 2, 7, 1, 9])  # by item; 9 has no text, 1 no audio clip
TEXTS = np.array([0, 4, 4, 7, 2, 0, 1, 5, 6])  # several captions of some images; 5 and 6 have no image
CLIPS = np.array([2, 4, 0, 7, 9])
SAID = {  # number of the text by item: the caption of 5 is that of 7
    TEXT: np.array([10, 11, 12, 13, 14, 15, 16, 13, 17]),
    IMAGE: np.array([11, 10, 14, 13, 16, 18]),
    AUDIO: np.array([14, 12, 15, 13, 18]),
}
NUMBERS = {TEXT: TEXTS, IMAGE: IMAGES, AUDIO: CLIPS}
NAMES = {TEXT: "text", IMAGE: "image", AUDIO: "audio"}


def items(which: int, width: int = 6) -> Items:
    """Embeddings on a coarse grid, so that scores tie; ids that say which item they are."""
    own, rng = NUMBERS[which], np.random.default_rng(which)
    vectors = np.round(rng.standard_normal((len(own), width))).astype(np.float32) / 4
    ids = np.arange(len(own), dtype=np.int32)[:, None] if which != IMAGE else None
    tokens = np.zeros((len(own), 1, 1), np.float32)
    order = np.arange(len(own))
    mask = np.ones((len(own), 1), np.int32)
    return Items(tokens, mask, vectors, own, order, ids, texts=SAID[which], inputs=order.astype(np.uint64))


ALL = {which: items(which) for which in NUMBERS}


def table(seed: int, *shape: int) -> np.ndarray:
    """Scores of which many are equal."""
    return np.random.default_rng(seed).integers(-3, 1, shape).astype(np.float64)


MATCH = {pair: table(sum(pair), *(len(NUMBERS[which]) for which in pair)) for pair in ((0, 1), (0, 2), (1, 2))}
LIKELIHOOD = {  # by what is given: text (of a clip its transcript), item
    (TEXT, IMAGE): table(7, len(TEXTS), len(IMAGES)),
    (TEXT, AUDIO): table(8, len(TEXTS), len(CLIPS)),
    (AUDIO, IMAGE): table(9, len(CLIPS), len(IMAGES)),
}


def evaluator(**weights: float) -> tuple[RetrievalEvaluator, list[str]]:
    """With the scores above; the list says which of them were asked for."""
    asked = []

    def match(group: dict[int, Items], pairs: np.ndarray, label: str) -> np.ndarray:
        asked.append("matching")
        return MATCH[tuple(sorted(group))][tuple(pairs.T)]

    def likelihood(given: int, _: Items, ids: np.ndarray, pairs: np.ndarray, label: str) -> np.ndarray:
        asked.append("likelihood")
        of = TEXT if len(ids) == len(TEXTS) else AUDIO
        return LIKELIHOOD[of, given][ids[pairs[:, 0], 0], pairs[:, 1]]

    reranker = Reranker.__new__(Reranker)
    config = RerankConfig(**({"embedding": 0.0, "matching": 0.0, "likelihood": 0.0} | weights))
    given = {name: getattr(config, name) for name in ("embedding", "matching", "likelihood")}
    reranker.weights = {name: weight for name, weight in given.items() if weight > 0}
    reranker.model = SimpleNamespace(scale=lambda: Tensor(np.float32(SCALE)))
    reranker.matching = SimpleNamespace(score=match, fused=0)
    reranker.likelihood = SimpleNamespace(score=likelihood, fused=0)
    encoder = SimpleNamespace(joint=lambda *_: None)
    transcribe = lambda clips: clips  # noqa: E731 - they have their transcripts
    engine = SimpleNamespace(reranker=reranker, encoder=encoder, transcribe=transcribe)
    return RetrievalEvaluator(engine), asked


def second_score(query: int, gallery: int, i: int, j: int, cosine: float, weights: dict[str, float]) -> float:
    low, high = sorted((query, gallery))
    a, b = (i, j) if query < gallery else (j, i)
    # of an image and a clip: that of the transcript given the image
    likely = LIKELIHOOD[TEXT, high][a, b] if low == TEXT else LIKELIHOOD[AUDIO, IMAGE][b, a]
    terms = {"embedding": SCALE * cosine, "matching": MATCH[low, high][a, b], "likelihood": likely}
    return sum(weight * terms[name] for name, weight in weights.items())


def is_right(query: int, gallery: int, i: int, j: int) -> bool:
    """Texts and speech by what they say; an image and either by any caption, written or spoken, of the image."""
    if IMAGE not in (query, gallery):
        return SAID[query][i] == SAID[gallery][j]
    image, other, which = (i, j, gallery) if query == IMAGE else (j, i, query)
    captions = [SAID[kind][NUMBERS[kind] == IMAGES[image]] for kind in (TEXT, AUDIO)]
    return SAID[which][other] in np.concatenate(captions)


def chance(query: int, gallery: int) -> float:
    """The share of the gallery that is right, mean over the queries that anything is right for."""
    size = len(NUMBERS[gallery])
    right = [sum(is_right(query, gallery, i, j) for j in range(size)) for i in range(len(NUMBERS[query]))]
    return float(np.mean([count for count in right if count])) / size


def by_hand(query: int, gallery: int, depth: int, weights: dict[str, float] | None) -> tuple[list[int], list[int]]:
    """The queries with a relevant item, and the rank of the best one."""
    queries, ranks = [], []
    offered = NUMBERS[gallery]
    for i in range(len(NUMBERS[query])):
        right = [j for j in range(len(offered)) if is_right(query, gallery, i, j)]
        if not right:
            continue
        cosines = ALL[gallery].embeddings.astype(np.float64) @ ALL[query].embeddings[i].astype(np.float64)
        order = sorted(range(len(offered)), key=lambda j, cosines=cosines: (-cosines[j], j))
        if weights:
            scores = {j: second_score(query, gallery, i, j, cosines[j], weights) for j in order[:depth]}
            order = sorted(order[:depth], key=lambda j, scores=scores: -scores[j]) + order[depth:]
        queries.append(i)
        ranks.append(next(rank for rank, j in enumerate(order) if j in right))
    return queries, ranks


DIRECTIONS = [(a, b) for a in NUMBERS for b in NUMBERS if a != b]
WEIGHTS = [
    {"embedding": 1.0, "matching": 0.5, "likelihood": 0.25},
    {"matching": 1.0},
    {"embedding": 0.1, "likelihood": 2.0},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("depth", [2, 4])
def test_both_stages_are_the_ranking_by_hand(weights: dict[str, float], depth: int) -> None:
    found, asked = evaluator(**weights)
    first, second, rankings = found.evaluate(ALL, depth)
    moved = 0
    for query, gallery in DIRECTIONS:
        name, size = f"{NAMES[query]}_to_{NAMES[gallery]}", {"gallery": len(NUMBERS[gallery])}
        queries, ranks = by_hand(query, gallery, depth, None)
        limits = {"different": size["gallery"], "best_R@1": 1.0, "chance_R@1": pytest.approx(chance(query, gallery))}
        assert first[name] == recall(np.array(ranks)) | size | limits, name
        queries, final = by_hand(query, gallery, depth, weights)
        assert second[name] == recall(np.array(final)) | size, name
        assert rankings[name].queries.tolist() == queries and rankings[name].indices.shape == (len(queries), depth)
        moved += final != ranks
    assert moved >= 3, "the second stage must change something"
    assert set(asked) == set(weights) - {"embedding"}, "what weighs nothing is not computed"


@pytest.mark.parametrize("depth", [0, 3])
def test_rankings_show_the_best_with_their_shares(depth: int) -> None:
    """Of the probability among the candidates, by the score that ranked them; five are shown of one stage alone."""
    weights = WEIGHTS[0]
    found, asked = evaluator(**weights)
    _, second, rankings = found.evaluate({TEXT: ALL[TEXT], IMAGE: ALL[IMAGE]}, depth)
    assert bool(second) == bool(depth) == bool(asked)
    for query, gallery in ((TEXT, IMAGE), (IMAGE, TEXT)):
        ranking = rankings[f"{NAMES[query]}_to_{NAMES[gallery]}"]
        assert ranking.indices.shape[1] == (depth or 5)
        for i, best, shares in zip(ranking.queries, ranking.indices, ranking.shares, strict=True):
            cosines = ALL[gallery].embeddings[best].astype(np.float64) @ ALL[query].embeddings[i].astype(np.float64)
            scores = SCALE * cosines
            if depth:
                pairs = zip(best, cosines, strict=True)
                scores = np.array([second_score(query, gallery, i, j, cosine, weights) for j, cosine in pairs])
            assert (np.diff(scores) <= 1e-9).all()
            np.testing.assert_allclose(shares, np.exp(scores) / np.exp(scores).sum(), rtol=1e-6)


def test_a_second_score_that_is_the_first_is_no_second_stage() -> None:
    found, asked = evaluator(embedding=1.0)
    assert not found.engine.reranker.active and found.evaluate(ALL, 3)[1] == {} and not asked


def test_shares_of_unlikely_candidates_are_shares() -> None:
    """A long text has a likelihood whose exponential is 0 in float64."""
    scores = np.array([[-2000.0, -2001.0, -3000.0], [800.0, 801.0, 799.0]])
    odds = np.exp([[0.0, -1.0, -1000.0], [-1.0, 0.0, -2.0]])
    np.testing.assert_allclose(softmax(scores), odds / odds.sum(1, keepdims=True))


def test_weights_of_zero_are_no_terms() -> None:
    """As the real one is built."""
    reranker = Reranker.__new__(Reranker)
    parts = {"TextLikelihood": lambda *_: None, "Matching": lambda *_: None}
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in parts.items():
            patch.setattr(f"src.inference.rerank.{name}", stand_in)
        config = RerankConfig(embedding=0.0, matching=0.5, likelihood=0.0)
        reranker.__init__(None, SimpleNamespace(pad_id=0), config, None)
    assert reranker.weights == {"matching": 0.5}


def folds(count: int) -> EvalConfig:
    rerank = RerankConfig(top_k=2, matching=1.0)
    return EvalConfig(retrieval=RetrievalConfig(gallery_size=0, folds=count), rerank=rerank)


def test_of_equally_good_weights_those_that_cost_least_are_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A term of weight 0 is not computed; cosines cost nothing, the likelihood is the dearest."""
    tried = grid()
    used = [tuple(weight > 0 for weight in weights) for weights in tried]
    order = [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    assert [group for group, _ in itertools.groupby(used)] == order
    monkeypatch.setattr(tuning, "measure", lambda scored, weights: dict.fromkeys(("R@1", "R@5", "R@10"), 1.0))
    assert choose(monkeypatch, tmp_path) == (1.0, 0.0, 0.0)
    assert len(set(tried)) == len(tried) == 5**3 - 4**3 and {max(weights) for weights in tried} == {1.0}


def test_pairs_are_cut_into_the_fewest_pieces_that_have_room() -> None:
    """Room for so many pairs, and for so many different items."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, most = rng.integers(1, 9, 2).tolist()
        owners = np.sort(rng.integers(0, 12, rng.integers(1, 40))) * 5
        pieces = [(part.start, part.stop) for part in _chunks(owners, rows, most)]
        expected, start = [], 0
        for stop in range(1, len(owners) + 1):
            ahead = owners[start : stop + 1]
            if stop == len(owners) or len(ahead) > rows or len(set(ahead.tolist())) > most:
                expected.append((start, stop))
                start = stop
        assert pieces == expected


def test_tokens_are_kept_only_where_candidates_are_scored_by_them() -> None:
    found, _ = evaluator(matching=1.0)

    def read(**rerank: float) -> set[int]:
        weights = {"matching": 0.0, "likelihood": 0.0} | rerank
        return set(found.needs(EvalConfig(rerank=RerankConfig(**weights))).tokens)

    assert read(top_k=4, matching=1.0) == {TEXT, IMAGE, AUDIO} and read(top_k=4, likelihood=1.0) == {IMAGE, AUDIO}
    assert read(top_k=4) == read(top_k=0, matching=1.0) == read(top_k=0, likelihood=1.0) == set()


def test_folds_average_only_directions_that_all_of_them_have() -> None:
    """Images up to 4, and from 5 on: of the latter only the clip of 7 says what a text says, and it is left out."""
    found, _ = evaluator(matching=1.0)
    group = ALL | {AUDIO: ALL[AUDIO].take(CLIPS != 7)}
    averaged = found.folds(group, folds(2))
    parts = []
    for part in (range(0, 5), range(5, 10)):
        chosen = {which: each.take(np.isin(each.images, part)) for which, each in group.items()}
        parts.append(found.evaluate(chosen, 2)[:2])
    assert averaged["count"] == 2 and averaged["gallery"] == len(IMAGES) // 2
    for stage, name in enumerate(("retrieval", "reranked")):
        both = parts[0][stage].keys() & parts[1][stage].keys()
        assert averaged[name].keys() == both != parts[0][stage].keys()
        for direction in both:
            for key, value in averaged[name][direction].items():
                assert value == pytest.approx(np.mean([part[stage][direction][key] for part in parts])), key


def test_a_direction_that_any_fold_lacks_has_no_mean() -> None:
    """Whichever fold it is, the one in the middle included."""
    low, high = {"R@1": 0.5}, {"R@1": 1.0}
    folds = [{"a": low, "b": low}, {"b": high}, {"a": high, "b": high}]
    for order in itertools.permutations(folds):
        assert _mean(order) == {"b": {"R@1": pytest.approx(2.5 / 3)}}


def test_what_is_logged_is_recall_at_1_and_its_mean() -> None:
    found, _ = evaluator(matching=1.0)
    metrics = {"retrieval": {"text_to_image": {"R@1": 0.2, "R@5": 0.9}, "image_to_text": {"R@1": 0.5, "R@5": 1.0}}}
    expected = {"text_to_image_R@1": 0.2, "image_to_text_R@1": 0.5, "mean_R@1": 0.35}
    assert found.logged(metrics) == pytest.approx(expected)
    for direction, chance in (("text_to_image", 0.01), ("image_to_text", 0.05)):
        metrics["retrieval"][direction]["chance_R@1"] = chance
    chances = {"text_to_image_R@1": 0.01, "image_to_text_R@1": 0.05, "mean_R@1": 0.03}
    assert found.beside(metrics) == pytest.approx({f"chance/{name}": value for name, value in chances.items()})


def split_of(group: dict[int, Items], **settings: Any) -> Split:
    loader = SimpleNamespace(dataset=SimpleNamespace(folder="data"))
    config = EvalConfig(retrieval=RetrievalConfig(**settings), rerank=RerankConfig(top_k=2, matching=1.0))
    return Split("dev", config, loader, group)


def test_the_gallery_is_that_of_the_first_images() -> None:
    """0, 1, 2 and 4: what has two modalities counts, a lone text before the next one comes along as a distractor."""
    found, _ = evaluator(matching=1.0)
    metrics = found.run(split_of(ALL, gallery_size=4))
    assert metrics["gallery"] == 4 == metrics["retrieval"]["text_to_image"]["gallery"]
    assert metrics["retrieval"]["image_to_text"]["gallery"] == (TEXTS < 7).sum()
    assert metrics["rerank"]["weights"] == {"matching": 1.0} and metrics["rerank"]["top_k"] == 2
    assert found.run(split_of({TEXT: ALL[TEXT]})) == {}


def test_a_sheet_marks_what_belongs_to_its_own_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that nothing belongs to are not ranked: the place of one among the ranked is not that of its item."""
    wanted = relevance(ALL, TEXT, IMAGE)
    queries = np.flatnonzero(wanted.answerable)[2:]
    assert queries[0] > 0 and len(queries) > 3
    indices = np.stack([np.roll(np.arange(len(IMAGES)), -turn) for turn in range(len(queries))])
    drawn: list[Any] = []
    monkeypatch.setattr(sheets, "retrieval_sheet", lambda path, title, rows: drawn.extend(rows))
    monkeypatch.setattr(sheets, "_query", lambda found, which: found.sample)
    monkeypatch.setattr(sheets, "_hit", lambda which, found, share, relevant: (found.sample, relevant))
    monkeypatch.setattr(
        sheets.Sheets, "media", lambda _, sample: SimpleNamespace(sample=sample, card=lambda *_: ("card",))
    )
    monkeypatch.setattr(sheets.ExampleBook, "add", lambda *_: None)
    ranking = Ranking(queries, indices, np.full(indices.shape, 1 / len(IMAGES)))
    sheets.Sheets(None, tmp_path).retrieval(ALL, {"text_to_image": ranking})
    assert len(drawn) == min(len(queries), sheets.ROWS)
    for said, hits in drawn:
        own = wanted.take(np.array([said])).at(indices[[queries.tolist().index(said)]])[0]
        for (offered, relevant), right, index in zip(hits, own, indices[queries.tolist().index(said)], strict=False):
            assert offered == index and relevant == bool(right)
    assert any(relevant for _, hits in drawn for _, relevant in hits)


def choose(monkeypatch: pytest.MonkeyPatch, output: Path, kinds: Sequence[int] = tuple(ALL)) -> tuple[float, ...]:
    """The weights that are chosen on a split of some modalities."""
    found, _ = evaluator(embedding=1.0)
    config = SimpleNamespace(task="retrieval", eval=EvalConfig(split="test", rerank=RerankConfig(top_k=3)))
    evaluation = SimpleNamespace(
        config=config, engine=SimpleNamespace(encoder=None), evaluators=[found], loader=lambda split: None
    )
    monkeypatch.setattr(tuning, "encode_split", lambda *_: {kind: ALL[kind] for kind in kinds})
    return tuning.tune(evaluation, "dev", output)


def test_a_split_without_pairs_has_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'dev' has no pairs of text, image and audio to rank"):
        choose(monkeypatch, tmp_path, [TEXT])
    assert not list(tmp_path.iterdir())


def test_too_many_folds_are_told_before_anything_is_ranked() -> None:
    found, asked = evaluator(matching=1.0)
    with pytest.raises(DataError, match="eval.retrieval.folds=99: the gallery has only 8 images: lower it"):
        found.run(split_of(ALL, folds=99, gallery_size=0))
    assert asked == [] and found.run(split_of(ALL, folds=1, gallery_size=0))["retrieval"]
