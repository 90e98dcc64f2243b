import numpy as np
import pytest

from src.metrics import nearest
from src.metrics.nearest import top_k, top_k_faiss, top_k_numpy
from src.metrics.recall import ranks, recall, rerank, reranked_ranks
from src.metrics.relevance import Relevance


def embeddings(rng: np.random.Generator, rows: int, width: int = 24) -> np.ndarray:
    values = rng.normal(size=(rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def naive_order(queries: np.ndarray, gallery: np.ndarray) -> list[list[int]]:
    scores = queries.astype(np.float64) @ gallery.astype(np.float64).T
    return [sorted(range(len(gallery)), key=lambda item, row=row: (-row[item], item)) for row in scores]


def naive_ranks(order: list[list[int]], query_ids: np.ndarray, gallery_ids: np.ndarray) -> list[int]:
    return [
        next(rank for rank, item in enumerate(items) if gallery_ids[item] == query_ids[query])
        for query, items in enumerate(order)
    ]


@pytest.fixture
def problem():
    """37 queries, 101 items; some images have several items, and some items are exact copies of others."""
    rng = np.random.default_rng(3)
    gallery = embeddings(rng, 101)
    gallery[[17, 40, 99]] = gallery[5]
    gallery_ids = rng.integers(0, 40, 101)
    query_ids = rng.choice(gallery_ids, 37)
    queries = embeddings(rng, 37)
    queries[7] = gallery[5]
    return queries, gallery, query_ids, gallery_ids


@pytest.mark.parametrize("blocks", [(1024, 8192), (1, 1), (5, 3), (37, 100), (36, 101)])
def test_equal_to_naive_in_any_blocks(problem, blocks):
    queries, gallery, query_ids, gallery_ids = problem
    order = naive_order(queries, gallery)
    indices, scores = top_k_numpy(queries, gallery, 10, *blocks)
    assert indices.tolist() == [items[:10] for items in order]
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ gallery.T, indices, 1), atol=1e-6)
    assert ranks(queries, gallery, Relevance.same(query_ids, gallery_ids), *blocks).tolist() == naive_ranks(
        order, query_ids, gallery_ids
    )


def test_copies_are_ordered_by_index(problem):
    queries, gallery, *_ = problem
    assert top_k_numpy(queries, gallery, 4, 2, 30)[0][7].tolist() == [5, 17, 40, 99]
    assert top_k_numpy(queries, gallery, 3, 2, 30)[0][7].tolist() == [5, 17, 40]


def test_scores_do_not_depend_on_blocks_at_all(problem):
    queries, gallery, *_ = problem
    whole = top_k_numpy(queries * 3, gallery * 100, 101)
    for blocks in [(1, 1), (4, 7), (37, 64)]:
        for expected, found in zip(whole, top_k_numpy(queries * 3, gallery * 100, 101, *blocks), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("k", [1, 3, 10, 95, 101])
def test_faiss_finds_the_same_to_the_last_bit(problem, k):
    """Also among copies, where rounded scores cannot tell which ones are kept."""
    pytest.importorskip("faiss")
    queries, gallery, *_ = problem
    for scale in (1.0, 100.0):
        expected, found = (engine(queries, gallery * scale, k) for engine in (top_k_numpy, top_k_faiss))
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_faiss_gives_up_where_its_rounding_decides(monkeypatch):
    """Twenty copies compete for three places: faiss may propose any of them, the first three are right."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(6)
    queries, gallery = embeddings(rng, 5), embeddings(rng, 400)
    gallery[rng.permutation(400)[:20]] = queries[2] + 1e-9
    asked = []
    search = nearest.top_k_numpy
    monkeypatch.setattr(nearest, "top_k_numpy", lambda q, g, k: asked.append(len(q)) or search(q, g, k))
    np.testing.assert_array_equal(top_k_faiss(queries, gallery, 3)[0], search(queries, gallery, 3)[0])
    assert asked == [1], "only the one query that cannot be settled"


def test_faiss_is_used_where_it_is_installed(problem, monkeypatch):
    calls = []
    for name in ("faiss", "numpy"):
        monkeypatch.setattr(nearest, f"top_k_{name}", lambda q, g, k, name=name: calls.append(name))
    for there in (True, False):
        monkeypatch.setattr(nearest, "has_faiss", lambda there=there: there)
        top_k(problem[0], problem[1], 3)
    assert calls == ["faiss", "numpy"]


def test_gallery_order_does_not_matter():
    rng = np.random.default_rng(4)
    queries, gallery = embeddings(rng, 20), embeddings(rng, 60)
    gallery_ids = rng.permutation(60) // 3  # three captions an image
    query_ids = np.arange(20)
    order = rng.permutation(60)
    expected = ranks(queries, gallery, Relevance.same(query_ids, gallery_ids))
    moved = ranks(queries, gallery[order], Relevance.same(query_ids, gallery_ids[order]))
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(order[top_k(queries, gallery[order], 9)[0]], top_k(queries, gallery, 9)[0])


def test_another_caption_of_the_image_counts():
    queries = np.array([[1.0, 0.0]])
    gallery = np.array([[0.9, 0.1], [0.0, 1.0], [1.0, 0.0]])
    assert ranks(queries, gallery, Relevance.same(np.array([4]), np.array([9, 4, 4]))).tolist() == [0]
    assert ranks(queries, gallery, Relevance.same(np.array([4]), np.array([4, 4, 9]))).tolist() == [1]


def test_a_collapsed_model_is_not_rewarded():
    same = np.ones((50, 8))
    assert recall(ranks(same, same, Relevance.same(np.arange(50), np.arange(50))))["R@1"] == pytest.approx(0.02)


@pytest.mark.parametrize("block", [1, 2, 3, 10])
def test_of_equally_good_relevant_items_the_first_has_the_rank(block):
    """Also where the others stand in later blocks: each of them counts one rank more."""
    relevance = Relevance.same(np.array([4, 9]), np.array([1, 4, 9, 4, 4, 9, 2]))
    found = ranks(np.ones((2, 3)), np.ones((7, 3)), relevance, gallery_block=block)
    assert found.tolist() == [1, 2]


def test_rerank_moves_the_candidates_only(problem):
    queries, gallery, query_ids, gallery_ids = problem
    relevance = Relevance.same(query_ids, gallery_ids)
    first = ranks(queries, gallery, relevance)
    candidates, _ = top_k(queries, gallery, 8)
    scores = np.random.default_rng(5).integers(0, 4, candidates.shape).astype(np.float32)  # with ties
    found = rerank(candidates, scores)
    expected_order = []
    for row, items in enumerate(naive_order(queries, gallery)):
        head = sorted(range(8), key=lambda place, row=row: (-scores[row, place], place))
        expected_order.append([items[place] for place in head] + items[8:])
    assert found.tolist() == [items[:8] for items in expected_order]
    second = reranked_ranks(found, first, relevance)
    assert second.tolist() == naive_ranks(expected_order, query_ids, gallery_ids)
    assert (first >= 8).any() and (second != first).any()


def test_recall_of_known_ranks():
    assert recall(np.array([0, 0, 4, 9, 10])) == {"R@1": 0.4, "R@5": 0.6, "R@10": 0.8, "median_rank": 5.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall(np.zeros(0, np.int64)), "recall of no queries: the split is empty"),
        (
            lambda: rerank(np.zeros((2, 3), np.int64), np.zeros((2, 2))),
            r"second scores have shape \[2, 2\], the candidates \[2, 3\]",
        ),
        (
            lambda: rerank(np.zeros((3, 2), np.int64), np.array([[0, 1], [0, np.nan], [np.nan, 1]])),
            "the second score of query 1 is not a number",
        ),
    ],
)
def test_unusable_scores_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert rerank(np.array([[4, 7]]), np.array([[-np.inf, 0.0]])).tolist() == [[7, 4]], "but such a score is the lowest"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, g, qi, gi: (q[:, :3], g, qi, gi), r"gallery embeddings have shape \[101, 24\], expected \[n, 3\]"),
        (lambda q, g, qi, gi: (q, g, qi[:4], gi), "relevance of 4 queries and 101 items, expected 37 and 101"),
        (lambda q, g, qi, gi: (q, g, qi * 0 + 999, gi), "query 0 has no relevant item"),
        (lambda q, g, qi, gi: (q, np.where(np.arange(101)[:, None] == 6, np.nan, g), qi, gi), "embedding 6 is not fin"),
    ],
)
def test_unusable_input_is_named(problem, change, message):
    with pytest.raises(ValueError, match=message):
        queries, gallery, query_ids, gallery_ids = change(*problem)
        ranks(queries, gallery, Relevance.same(query_ids, gallery_ids))
    with pytest.raises(ValueError, match="k = 102"):
        top_k(problem[0], problem[1], 102)
