"""The yardstick of the benchmarks computes the same losses: a PyTorch network with the project's weights."""

import numpy as np
import pytest
import torch

from benchmarks import torch_network, torch_twin
from src.config import Config, DataConfig
from src.data.schema import AUDIO
from src.models.opt import OPT
from src.objectives.table import needed_fields
from tests.objectives import ALL, MODEL, B, batch_with_repeats, losses, only
from tests.oracles import OBJECTIVES, VOCAB, randomise


@pytest.fixture(scope="module")
def twins() -> tuple[OPT, torch_network.OPT]:
    """Equal weights."""
    ours, theirs = OPT(MODEL, VOCAB), torch_network.OPT(MODEL, VOCAB)
    randomise(ours, spread=0.1)
    theirs.load_state_dict({name: torch.from_numpy(p.asnumpy().copy()) for name, p in ours.parameters_and_names()})
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "silent"), [*((name, False) for name in ("all", *OBJECTIVES)), ("all", True), ("contrastive", True)]
)
def test_losses_are_equal(twins: tuple[OPT, torch_network.OPT], name: str, silent: bool) -> None:
    """Each by itself and all together, on samples that lack something, and on a corpus without audio."""
    batch = batch_with_repeats()
    if silent:
        for field in ("presence", "match_presence", "denoise_text_presence", "denoise_image_presence", "mam_weights"):
            column = slice(None) if field == "mam_weights" else AUDIO
            batch[field][:, column] = 0
    objectives = ALL if name == "all" else only(name)
    config = Config(model=MODEL, objectives=objectives, data=DataConfig(codes="some", batch_size=B))
    fields = {field: torch.from_numpy(np.ascontiguousarray(batch[field])) for field in needed_fields(objectives)}
    with torch.no_grad():
        theirs = float(torch_twin.Objectives(twins[1], config)(fields))
    assert losses(twins[0], objectives, batch)["total"] == pytest.approx(theirs, rel=2e-5)
