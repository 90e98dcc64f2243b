"""What every evaluator is: it says what it reads of a split, measures it, and names the metrics to log."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.config import EvalConfig
from src.data.pipeline import Loader
from src.evaluation.sheets import Sheets
from src.inference.encode import Items
from src.inference.engine import Engine


@dataclass(frozen=True)
class Needs:
    """Which encoded items an evaluator reads."""

    max_items: int = 0  # of the first so many images; 0: all
    having: frozenset[int] = frozenset()  # the modalities without which an image does not count; empty: any two
    modalities: frozenset[int] = frozenset()  # that are encoded; none: it reads the split by itself
    tokens: frozenset[int] = frozenset()  # those of which more than the embeddings is read


@dataclass
class Split:
    """A split under evaluation, shared by its evaluators."""

    name: str
    settings: EvalConfig
    loader: Loader | None = None  # None where nobody reads samples
    items: dict[int, Items] = field(default_factory=dict)  # by modality; transcripts are added once they are made
    sheets: Sheets | None = None  # shows samples; None: nothing is shown


class Evaluator(ABC):
    """Measures one thing; its graphs are compiled at first use and serve every later call with the weights of then.

    Args:
        engine: the model and what it can do.
    """

    name: str  # of the measurement in ``seconds``
    reads_split = True  # whether it measures the split, and not files of its own
    reads_codes = False  # whether batches must hold the codes that are stored beside the shards

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @abstractmethod
    def needs(self, settings: EvalConfig) -> Needs | None:
        """What is read of a split; None where the settings leave nothing to do."""

    @abstractmethod
    def run(self, split: Split) -> dict[str, Any]:
        """Metrics by the name of their section; sections without anything to measure are left out."""

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The metrics that training logs, out of what :meth:`run` returned; higher is better."""
        return {}

    def beside(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """What training logs beside them: ``chance/NAME``, what looking at nothing reaches of the metric NAME, and
        ``embeddings/NAME``, how embeddings lie."""
        return {}
