"""Work that ranks divide: each piece on one of them, the results of one process on all, and nobody is left waiting."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from conftest import tiny_dataset
from ranks import start_ranks

from src import cli, sharing
from src.config import (
    CaptionConfig,
    Config,
    DenoiseTextConfig,
    EvalConfig,
    ImageGenerationConfig,
    ObjectivesConfig,
    RerankConfig,
    WeightsConfig,
)
from src.sharing import Crew, Interruption, SharedWorkError, divide, working_together
from tests.oracles import tiny_model

pytestmark = pytest.mark.ranks
RANKS = 3


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs a function on so many ranks, which are threads; what each returns or raises."""
    barrier, rows = threading.Barrier(RANKS, timeout=20), {}

    def gather(row: np.ndarray) -> np.ndarray:
        rows[threading.current_thread().name] = row
        barrier.wait()
        together = np.stack([rows[str(rank)] for rank in range(RANKS)])
        barrier.wait()
        return together

    monkeypatch.setattr(sharing, "_gather", gather)

    def run(work: Callable[[Crew], Any], asked: Callable[[int], bool] = lambda _: False) -> list[Any]:
        found: dict[int, Any] = {}

        def rank(number: int) -> None:
            try:
                found[number] = work(Crew(number, RANKS, lambda: asked(number)))
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=rank, args=(number,), name=str(number)) for number in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return [found[number] for number in range(RANKS)]

    return run


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_each_piece_is_computed_once_and_all_have_all(crew: Callable, count: int) -> None:
    computed: list[int] = []

    def compute(piece: int) -> tuple[int, np.ndarray]:
        computed.append(piece)
        return piece, np.full(1 + 5 * piece, piece)

    for results in crew(lambda ranks: list(ranks.divide(iter(range(count)), compute))):
        assert [number for number, _ in results] == list(range(count))
        assert all(array.shape == (1 + 5 * number,) and (array == number).all() for number, array in results)
    assert sorted(computed) == list(range(count))


def test_a_result_is_that_of_its_own_call(crew: Callable) -> None:
    """A graph's output shares memory with the next one's."""
    outputs = {rank: np.zeros(1) for rank in map(str, range(RANKS))}

    def compute(piece: int) -> np.ndarray:
        output = outputs[threading.current_thread().name]
        output[0] = piece
        return output

    for results in crew(lambda ranks: list(ranks.divide(range(9), compute))):
        assert [float(array[0]) for array in results] == list(range(9))


def test_much_goes_in_parts(crew: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST", 64)
    for results in crew(lambda ranks: ranks.exchange(np.arange(100 * (ranks.rank + 1)))):
        assert [len(array) for array in results] == [100, 200, 300] and results[2][-1] == 299


def test_a_rank_that_fails_tells_the_others(crew: Callable) -> None:
    def compute(piece: int) -> int:
        if piece == 4:
            raise ValueError("no memory")
        return piece

    first, second, third = crew(lambda ranks: list(ranks.divide(range(7), compute)))
    assert isinstance(second, ValueError)
    for other in (first, third):
        assert isinstance(other, SharedWorkError) and str(other) == "rank 1: ValueError: no memory"


def test_a_rank_that_is_asked_to_stop_takes_the_others_along(crew: Callable) -> None:
    found = crew(lambda ranks: list(ranks.divide(range(7), lambda piece: piece)), asked=lambda rank: rank == 2)
    assert all(isinstance(error, Interruption) for error in found)


def test_a_failure_between_two_works_is_told_too(crew: Callable) -> None:
    """Whether the others still divide something or are through: nobody waits for the one that failed."""
    for more in (0, 1):

        def work(ranks: Crew, more: int = more) -> list[int]:
            with ranks.together():
                found = list(ranks.divide(range(5), lambda piece: piece))
                if ranks.rank == 0:
                    raise MemoryError("too much")
                for _ in range(more):
                    found += ranks.divide(range(5), lambda piece: piece)
            return found

        first, *others = crew(work)
        assert isinstance(first, MemoryError)
        assert [str(other) for other in others] == ["rank 0: MemoryError: too much"] * 2
        assert all(isinstance(other, SharedWorkError) for other in others)


def test_a_failure_that_all_know_of_is_told_once(crew: Callable) -> None:
    def fails(piece: int) -> int:
        raise ValueError(f"piece {piece}")

    def work(ranks: Crew) -> None:
        with ranks.together():
            list(ranks.divide(range(1), fails))

    first, *others = crew(work)
    assert isinstance(first, ValueError) and [str(other) for other in others] == ["rank 0: ValueError: piece 0"] * 2


def test_inside_of_a_piece_nothing_is_divided() -> None:
    class Alone(Crew):
        def exchange(self, value: object) -> list[object]:
            return [value, ({} if isinstance(value[0], dict) else None, None, False)]

    with working_together(Alone(0, 2)):
        inner = list(divide(range(4), lambda piece: [2 * number for number in divide(range(piece), lambda n: n)]))
    assert inner == [[], [0, 2]], "pieces 0 and 2 are this rank's, each whole"


def evaluated_config(folder: Path) -> Config:
    """A model that does everything that training looks at."""
    settings = EvalConfig(
        split="dev",
        batch_size=3,
        rerank=RerankConfig(top_k=3, likelihood=1.0, matching=0.5),
        caption=CaptionConfig(max_items=7),
        image_generation=ImageGenerationConfig(max_items=0),
    )
    weights = WeightsConfig(contrastive=1.0, mlm=1.0, matching=1.0, denoise_text=1.0)
    objectives = ObjectivesConfig(
        weights=weights, denoise_text=DenoiseTextConfig(given=("image", "audio", "image+audio"))
    )
    return tiny_dataset(folder, records=40, config=Config(model=tiny_model(), eval=settings, objectives=objectives))


def evaluate(config: Config, crew: Crew | None) -> tuple[dict[str, Any], int]:
    """Metrics, and how many pieces this process computed."""
    from src.evaluation.run import Evaluation
    from src.inference.engine import Engine
    from src.models.build import build_model
    from src.tasks import registry

    pieces = [0]

    def counting(compute: Callable) -> Callable:
        def call(piece: Any) -> Any:
            pieces[0] += 1
            return compute(piece)

        return call

    if crew is not None:
        inner = crew.divide
        crew.divide = lambda work, compute: inner(work, counting(compute))
    ms.set_seed(1)
    evaluation = Evaluation(Engine(config, build_model(config)), registry.get("pretrain").evaluators)
    with working_together(crew):
        metrics = evaluation.run("dev")
    return {name: value for name, value in metrics.items() if name not in ("seconds", "versions")}, pieces[0]


def test_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    """Retrieval with re-ranking, captions, transcripts, masked words, matching: equal, and the work is divided."""
    config = evaluated_config(tmp_path / "made")
    expected, _ = evaluate(config, None)
    start_ranks(__file__, tmp_path, 2)
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    for metrics in (expected, *(rank["metrics"] for rank in found)):
        del metrics["data"]["path"]  # each rank has a copy of its own
    for rank in found:
        assert rank["metrics"] == json.loads(json.dumps(expected))
    shares = [rank["pieces"] for rank in found]
    assert min(shares) > 10 and max(shares) - min(shares) <= 1, shares


def run_rank(folder: Path) -> None:
    from mindspore.communication import get_group_size, get_rank, init

    ms.set_device("CPU")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    init()
    rank = get_rank()
    config = evaluated_config(folder / f"own-{rank}")  # the same again: only one process may write a folder
    metrics, pieces = evaluate(config, Crew(rank, get_group_size()))
    (folder / f"rank-{rank}.json").write_text(json.dumps({"metrics": metrics, "pieces": pieces}))


if __name__ == "__main__":
    cli.run(lambda: run_rank(Path(sys.argv[1])))
