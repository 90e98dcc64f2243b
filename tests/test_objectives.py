"""One forward for every objective: values, gradients and where they go, shares of the batch, and that it learns."""

from collections.abc import Callable
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.config import OBJECTIVES as ALL_OBJECTIVES
from src.config import WeightsConfig
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT, batch_fields
from src.losses.contrastive import BlockedContrastive
from src.models.opt import OPT
from src.objectives import objectives
from src.objectives.levels import level_rows
from src.objectives.objectives import Objectives
from src.objectives.table import (
    MEASURED,
    MODALITY,
    SAMPLE,
    TABLE,
    TOKEN,
    active_objectives,
    measured_settings,
    needed_fields,
)
from tests.objectives import (
    ALL,
    MODEL,
    ROWS,
    TOKEN_ROWS,
    WEIGHTS,
    B,
    Values,
    batch_with_repeats,
    build,
    gradients,
    losses,
    only,
    weighted,
)
from tests.oracles import OBJECTIVES, VOCAB, Arrays, feature_model, run_mode, tensors, tiny_batch

# parameters of those parts that have nothing to do with the loss
UNREACHED = {
    "denoise_text": ("text_project.weight", "text_project.bias"),  # no text is given
    "denoise_image": ("image_project.weight", "image_project.bias"),  # no image is given
    # only the mask token
    "mvm_code": tuple(f"masked_image_head.{part}" for part in ("transform.weight", "transform.bias"))
    + tuple(f"masked_image_head.{part}" for part in ("project.weight", "project.bias")),
}

# the token level masks all modalities together, so that its losses change when one of them is switched off
GROUPS = (("contrastive",), tuple(TOKEN_ROWS), ("matching",), ("denoise_text",), ("denoise_image",))
ENCODERS = ("text_encoder", "image_encoder", "audio_encoder")
# where the gradient of each loss goes: the text is absent from what denoising reads, the matching head takes the
# embeddings as given, and only the contrastive loss trains the embedding heads
FLOW = {
    "contrastive": {*ENCODERS, "text_head", "image_head", "audio_head", "scale"},
    "mlm": {*ENCODERS, "cross_encoder", "masked_text_head"},
    "mvm_code": {
        *ENCODERS,
        "cross_encoder",
        "masked_code_head",
        "masked_image_head",
    },  # the latter holds the mask token
    "mvm_feature": {*ENCODERS, "cross_encoder", "masked_image_head"},
    "mam_feature": {*ENCODERS, "cross_encoder", "masked_audio_head"},
    "mam_contrastive": {*ENCODERS, "cross_encoder", "masked_audio_head"},
    "matching": {*ENCODERS, "cross_encoder", "matching_head"},
    "denoise_text": {"image_encoder", "audio_encoder", "cross_encoder", "text_decoder"},
    "denoise_image": {"text_encoder", "audio_encoder", "cross_encoder", "image_decoder"},
}
# encoders of what is given, which the rows of the table leave out
WITH_GIVEN = {
    "denoise_text": {"image_encoder", "audio_encoder"},
    "denoise_image": {"text_encoder", "audio_encoder"},
}


@pytest.fixture(scope="module")
def opt() -> OPT:
    return build()


class Step(nn.Cell):
    """One step of Adam: the losses and the gradients before it."""

    def __init__(self, model: OPT) -> None:
        super().__init__()
        self.objectives, self.fields = Objectives(model, ALL, B), needed_fields(ALL)
        self.optimizer = nn.Adam(model.trainable_params(), learning_rate=1e-2)
        self.differentiate = ops.value_and_grad(self.forward, None, self.optimizer.parameters, has_aux=True)

    def forward(self, *tensors):
        batch = {}  # as an input a dict would be a constant, compiled in anew for every batch
        for i in range(len(self.fields)):
            batch[self.fields[i]] = tensors[i]
        values = self.objectives(batch)
        return values[0], values

    def construct(self, *tensors):
        (_, values), gradients = self.differentiate(*tensors)
        self.optimizer(gradients)
        return values, gradients


@pytest.fixture(scope="module")
def graph(opt: OPT) -> Callable[[Arrays], tuple[Values, Arrays]]:
    """Training of a model that begins where ``opt`` is, compiled once: call it in graph mode."""
    model = OPT(MODEL, VOCAB)
    for parameter, value in zip(model.get_parameters(), opt.get_parameters(), strict=True):
        parameter.set_data(Tensor(value.asnumpy().copy()))
    names, step = [name for name, _ in model.parameters_and_names()], Step(model)

    def run(batch: Arrays) -> tuple[Values, Arrays]:
        values, found = step(*(Tensor(batch[name]) for name in needed_fields(ALL)))
        return (
            dict(zip(("total", *OBJECTIVES), map(float, values), strict=True)),
            {name: gradient.asnumpy() for name, gradient in zip(names, found, strict=True)},
        )

    return run


@pytest.fixture(scope="module")
def in_pynative(opt: OPT) -> tuple[Values, Arrays]:
    return gradients(opt, ALL, batch_with_repeats())


def test_every_objective_has_a_row() -> None:
    """The table says of each where its rows come from, what it reads, and what it trains."""
    assert tuple(TABLE) == ALL_OBJECTIVES and [row.name for row in TABLE.values()] == list(ALL_OBJECTIVES)
    levels = [row.level for row in TABLE.values()]
    assert levels == sorted(levels, key=["", TOKEN, SAMPLE, MODALITY].index), "losses follow one another by level"
    fields = batch_fields(MODEL, B, 0.15) | batch_fields(feature_model(), B, 0.15)
    assert {field for row in TABLE.values() for field in row.fields} <= fields.keys()
    assert {name: set(row.parts) | WITH_GIVEN.get(name, set()) for name, row in TABLE.items() if name in FLOW} == FLOW
    everything = replace(ALL, weights=WeightsConfig(**dict.fromkeys(ALL_OBJECTIVES, 1.0)))
    measured = measured_settings(everything)
    assert active_objectives(measured) == MEASURED == ALL_OBJECTIVES[1:8]
    assert measured.masking.batch_share == measured.matching.batch_share == 1


def test_names_and_fields_follow_the_weights() -> None:
    assert active_objectives(ALL) == OBJECTIVES
    assert active_objectives(only("mlm")) == ("mlm",)
    assert "mlm_ids" in needed_fields(only("mlm")) and "match_noise" not in needed_fields(only("mlm"))
    assert set(needed_fields(ALL)) == set(tiny_batch(MODEL, 2)) - {"sample_id"}
    assert [level_rows(128, x) for x in (1.0, 0.5, 0.25, 0.001)] == [128, 64, 32, 1]
    assert [level_rows(10, x) for x in (0.29, 0.31, 0.37)] == [3, 3, 4], "rounded, not cut"


def test_graph_equals_pynative(
    graph: Callable[[Arrays], tuple[Values, Arrays]], in_pynative: tuple[Values, Arrays]
) -> None:
    with run_mode("graph"):
        values, found = graph(batch_with_repeats())
    assert values == pytest.approx(in_pynative[0], rel=1e-5)
    for name, expected in in_pynative[1].items():
        np.testing.assert_allclose(found[name], expected, atol=2e-5, rtol=1e-3, err_msg=name)


def test_total_is_the_weighted_sum(in_pynative: tuple[Values, Arrays]) -> None:
    values = in_pynative[0]
    assert tuple(values) == ("total", *OBJECTIVES) and all(value > 0.01 for value in values.values())
    assert values["total"] == pytest.approx(sum(WEIGHTS[name] * values[name] for name in OBJECTIVES), rel=1e-5)


@pytest.fixture(scope="module")
def alone(opt: OPT) -> dict[str, tuple[Values, Arrays]]:
    """Each objective with all others switched off."""
    return {name: gradients(opt, only(name), batch_with_repeats()) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def by_group(opt: OPT, alone: dict[str, tuple[Values, Arrays]]) -> dict[tuple[str, ...], tuple[Values, Arrays]]:
    """Each group of objectives with the others switched off, from a batch that holds only the fields it needs."""

    def found(group: tuple[str, ...]) -> tuple[Values, Arrays]:
        if len(group) == 1:
            return alone[group[0]]
        others = dict.fromkeys(set(OBJECTIVES) - set(group), 0.0)
        return gradients(opt, weighted(**others), batch_with_repeats())

    return {group: found(group) for group in GROUPS}


@pytest.mark.parametrize("group", GROUPS)
def test_switching_off_the_others_changes_no_loss(
    in_pynative: tuple[Values, Arrays], by_group: dict[tuple[str, ...], tuple[Values, Arrays]], group: tuple[str, ...]
) -> None:
    """Each level finds its own rows in the stack."""
    values, _ = by_group[group]
    assert set(values) == {"total", *group}
    for name in group:
        assert values[name] == pytest.approx(in_pynative[0][name], rel=1e-5)
    assert values["total"] == pytest.approx(sum(WEIGHTS[name] * values[name] for name in group), rel=1e-6)


def test_gradients_add_up(
    in_pynative: tuple[Values, Arrays], by_group: dict[tuple[str, ...], tuple[Values, Arrays]]
) -> None:
    for name, whole in in_pynative[1].items():
        total = sum(found[name] for _, found in by_group.values())
        np.testing.assert_allclose(total, whole, atol=5e-5, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_reaches_the_parts_it_should_and_no_others(alone: dict[str, tuple[Values, Arrays]], name: str) -> None:
    _, found = alone[name]
    reached = {key.split(".")[0] for key, gradient in found.items() if gradient.any()}
    assert reached == FLOW[name]
    # softmax is blind to what every key shares, so a key's bias has none but rounding
    without = ("key.bias", *UNREACHED.get(name, ()))
    for key, gradient in found.items():
        if key.split(".")[0] in reached and not key.endswith(without):
            assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-7, f"{key} does not learn"


def test_a_modality_that_nobody_has_is_untouched(opt: OPT) -> None:
    """No sample has an audio clip: what lies in its place has no influence and the audio encoder learns nothing."""
    batch = tiny_batch(MODEL, B)
    for name in ("presence", "match_presence", "denoise_text_presence", "denoise_image_presence"):
        batch[name][:, AUDIO] = 0
    batch["mam_weights"][:] = 0
    values, found = gradients(opt, ALL, batch)
    batch["audio"] = 255 - batch["audio"]
    batch["audio_frames"][:] = MODEL.audio.max_frames
    assert losses(opt, ALL, batch) == values
    assert not any(gradient.any() for key, gradient in found.items() if key.startswith("audio_"))
    assert found["cross_encoder.absent"][AUDIO].any() and not found["cross_encoder.modality"][AUDIO].any()


def test_a_large_batch_has_the_same_contrastive_loss_and_gradients(opt: OPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of three queries, and one that is left."""
    wanted, expected = gradients(opt, only("contrastive"), batch_with_repeats())
    monkeypatch.setattr(objectives, "BlockedContrastive", lambda: BlockedContrastive(largest=3 * B))
    with run_mode("graph"):
        found, blocked = gradients(opt, only("contrastive"), batch_with_repeats())
    assert found == pytest.approx(wanted, rel=1e-6)
    for name, gradient in expected.items():
        np.testing.assert_allclose(blocked[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)
    monkeypatch.setattr(BlockedContrastive, "construct", lambda *_: Tensor(0.0))
    assert gradients(opt, only("contrastive"), batch_with_repeats())[0]["contrastive"] == 0, "blocks are what is used"


def test_each_level_reads_its_share_of_the_batch(opt: OPT) -> None:
    """Rows outside of a level's share do not matter to it, rows inside do."""
    fields = {"mlm": "mlm_ids", "matching": "match_presence", "denoise_text": "denoise_text_presence"}
    fields |= {"mvm_code": "image_codes", "mam_contrastive": "audio", "denoise_image": "denoise_image_presence"}
    batch = tiny_batch(MODEL, B)
    for name, field in fields.items():
        inside = ROWS[name]
        before = losses(opt, only(name), batch)
        outside = [row for row in range(B) if row not in inside]
        for rows, matters in (([inside[0]], True), ([inside[-1]], True), (outside, False)):
            other = batch[field].copy()
            other[rows] = {"mlm_ids": 7, "audio": 99, "image_codes": 3}.get(field, 1 - other[rows])
            after = losses(opt, only(name), {**batch, field: other})[name]
            assert (after != before[name]) == matters, (name, rows)


def test_one_batch_is_overfitted_in_each_objective(graph: Callable[[Arrays], tuple[Values, Arrays]]) -> None:
    """To under a tenth of its first loss: samples of different images, with all they have."""
    batch = tiny_batch(MODEL, B)
    with run_mode("graph"):
        first = last = graph(batch)[0]
        for _ in range(300):
            if all(last[name] < 0.1 * first[name] for name in OBJECTIVES):
                break
            last = graph(batch)[0]
    for name in OBJECTIVES:
        assert last[name] < 0.1 * first[name], (name, first, last)


@pytest.mark.parametrize("absent", [AUDIO, IMAGE, TEXT])
def test_what_no_sample_has_is_not_encoded_and_changes_nothing(opt: OPT, absent: int) -> None:
    """Losses, and the gradients of all that is there, are those with the blank encoded."""
    batch = batch_with_repeats()
    for name in ("presence", "match_presence", "denoise_text_presence", "denoise_image_presence"):
        batch[name][:, absent] = 0
    for name in ("mlm_weights", "mvm_weights", "mam_weights")[absent : absent + 1]:
        batch[name][:] = 0
    if absent == TEXT:
        batch["text_mask"][:] = 0
    fed = {TEXT: "mvm_feature", IMAGE: "denoise_text", AUDIO: "mvm_feature"}[absent]
    config = weighted(only("contrastive"), **{fed: 1.0})
    named = dict(opt.parameters_and_names())
    found = []
    for gone in ((), (absent,)):
        objectives = Objectives(opt, config, B, absent=gone)
        function = ms.value_and_grad(objectives, None, list(named.values()), has_aux=True)
        values, gradients = function(tensors({name: batch[name] for name in objectives.fields}))
        found.append(([float(value) for value in values], [gradient.asnumpy() for gradient in gradients]))
    (values, gradients), (with_less, gradients_with_less) = found
    assert with_less == pytest.approx(values, rel=1e-5) and min(values) > 0
    parts = objectives.trained_parts()
    assert f"{MODALITIES[absent]}_encoder" not in parts and f"{MODALITIES[absent]}_head" not in parts
    for name, whole, less in zip(named, gradients, gradients_with_less, strict=True):
        if name.split(".")[0] in parts:
            np.testing.assert_allclose(less, whole, atol=1e-5, err_msg=name)
    assert absent == TEXT or MODALITIES[absent] not in objectives.fields, "no blanks are sent to the device"
