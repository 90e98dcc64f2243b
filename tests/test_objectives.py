"""One forward for every objective: values, gradients and where they go, rows of the levels, and that it learns."""

from collections.abc import Callable
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.config import ObjectivesConfig
from src.data.schema import AUDIO, IMAGE, MATCH_CASES, TEXT
from src.losses.matching import build_rows
from src.models.opt import OPT
from src.tasks.levels import level_rows
from src.tasks.objectives import COUPLES, Objectives, active_objectives, needed_fields
from tests.oracles import MASK_RATIO, OBJECTIVES, VOCAB, Arrays, randomise, run_mode, tensors, tiny_batch, tiny_model

MODEL = tiny_model()
B = 10
WEIGHTS = {
    "contrastive": 0.7,
    "mlm": 0.5,
    "mvm_code": 0.8,
    "mvm_feature": 1.2,
    "mam_feature": 0.9,
    "mam_contrastive": 0.6,
    "matching": 1.5,
    "denoise_text": 2.0,
    "denoise_image": 1.1,
}
FRACTIONS = {"token_fraction": 0.5, "sample_fraction": 0.8, "modality_fraction": 0.3, "draw_fraction": 0.4}
ALL = ObjectivesConfig(**WEIGHTS, mask_ratio=MASK_RATIO, **FRACTIONS)
# what each level reads of the batch
TOKEN_ROWS = dict.fromkeys(("mlm", "mvm_code", "mvm_feature", "mam_feature", "mam_contrastive"), range(5))
ROWS = {**TOKEN_ROWS, "matching": range(8), "denoise_image": range(3, 7), "denoise_text": range(7, B)}
# parameters of those parts that have nothing to do with the loss
UNREACHED = {
    "denoise_text": ("text_project.weight", "text_project.bias"),  # no text is given
    "denoise_image": ("image_project.weight", "image_project.bias"),  # no picture is given
    # only the vector in place of hidden patches
    "mvm_code": tuple(f"masked_image_head.{part}" for part in ("transform.weight", "transform.bias"))
    + tuple(f"masked_image_head.{part}" for part in ("project.weight", "project.bias")),
}
Values = dict[str, float]

# what the token level hides it hides together, so that its losses change when one of them is switched off
GROUPS = (("contrastive",), tuple(TOKEN_ROWS), ("matching",), ("denoise_text",), ("denoise_image",))
ENCODERS = ("text_encoder", "image_encoder", "audio_encoder")
# where the gradient of each loss goes: the text is absent from what denoising reads, the matching head takes the
# embeddings as given, and only the contrastive loss trains the embedding heads
FLOW = {
    "contrastive": {*ENCODERS, "text_head", "image_head", "audio_head", "scale"},
    "mlm": {*ENCODERS, "cross_encoder", "masked_text_head"},
    "mvm_code": {*ENCODERS, "cross_encoder", "masked_code_head", "masked_image_head"},  # the latter's vector
    "mvm_feature": {*ENCODERS, "cross_encoder", "masked_image_head"},
    "mam_feature": {*ENCODERS, "cross_encoder", "masked_audio_head"},
    "mam_contrastive": {*ENCODERS, "cross_encoder", "masked_audio_head"},
    "matching": {*ENCODERS, "cross_encoder", "matching_head"},
    "denoise_text": {"image_encoder", "audio_encoder", "cross_encoder", "text_decoder"},
    "denoise_image": {"text_encoder", "audio_encoder", "cross_encoder", "image_decoder"},
}


def only(name: str, config: ObjectivesConfig = ALL) -> ObjectivesConfig:
    return replace(config, **{other: WEIGHTS[name] if other == name else 0.0 for other in OBJECTIVES})


def batch_with_repeats() -> Arrays:
    """Samples that lack something, and two pictures that stand twice; of one of them only one caption has a sound."""
    batch = tiny_batch(MODEL, B)
    batch["image_id"][3] = batch["image_id"][0]
    batch["image_id"][1] = batch["image_id"][4]
    for row, presence in ((1, (1, 1, 0)), (2, (0, 1, 1)), (6, (1, 0, 1)), (7, (0, 1, 1))):
        batch["presence"][row] = presence
        for name in ("match_presence", "denoise_presence", "draw_presence"):
            batch[name][row] *= np.array(presence, np.int32)
        if not presence[TEXT]:
            for name in ("text_ids", "text_mask", "mlm_ids", "mlm_positions", "mlm_labels", "mlm_weights"):
                batch[name][row] = 0
        if not presence[AUDIO]:
            batch["audio"][row], batch["audio_frames"][row] = 0, 0
            batch["mam_positions"][row], batch["mam_weights"][row] = 0, 0
        if not presence[IMAGE]:
            batch["image"][row], batch["image_codes"][row] = 0, -1
            batch["mvm_positions"][row], batch["mvm_weights"][row] = 0, 0
    return batch


@pytest.fixture(scope="module")
def opt() -> OPT:
    model = OPT(MODEL, VOCAB)
    randomise(model, spread=0.1)
    return model


def losses(opt: OPT, config: ObjectivesConfig, batch: Arrays) -> Values:
    """total and each active loss, in pynative mode."""
    found = Objectives(opt, config, B)(tensors(batch))
    return dict(zip(("total", *active_objectives(config)), map(float, found), strict=True))


def gradients(opt: OPT, config: ObjectivesConfig, batch: Arrays) -> tuple[Values, Arrays]:
    """The losses, and the total's gradients by parameter of the model, in pynative mode."""
    named = dict(opt.parameters_and_names())
    function = ms.value_and_grad(Objectives(opt, config, B), None, list(named.values()), has_aux=True)
    values, found = function(tensors({name: batch[name] for name in needed_fields(config)}))
    names = ("total", *active_objectives(config))
    return (
        dict(zip(names, map(float, values), strict=True)),
        {name: gradient.asnumpy() for name, gradient in zip(named, found, strict=True)},
    )


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


def test_names_and_fields_follow_the_weights() -> None:
    assert active_objectives(ALL) == OBJECTIVES
    assert active_objectives(only("mlm")) == ("mlm",)
    assert "mlm_ids" in needed_fields(only("mlm")) and "match_noise" not in needed_fields(only("mlm"))
    assert set(needed_fields(ALL)) == set(tiny_batch(MODEL, 2)) - {"sample_id"}
    assert [level_rows(128, x) for x in (1.0, 0.5, 0.25, 0.001)] == [128, 64, 32, 1]


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
        return gradients(opt, replace(ALL, **others), batch_with_repeats())

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
    """No sample has a sound: what lies in its place has no influence and the audio encoder learns nothing."""
    batch = tiny_batch(MODEL, B)
    for name in ("presence", "match_presence", "denoise_presence", "draw_presence"):
        batch[name][:, AUDIO] = 0
    batch["mam_weights"][:] = 0
    values, found = gradients(opt, ALL, batch)
    batch["audio"] = 255 - batch["audio"]
    batch["audio_frames"][:] = MODEL.audio.max_frames
    assert losses(opt, ALL, batch) == values
    assert not any(gradient.any() for key, gradient in found.items() if key.startswith("audio_"))
    assert found["cross_encoder.absent"][AUDIO].any() and not found["cross_encoder.modality"][AUDIO].any()


def test_each_level_reads_its_share_of_the_batch(opt: OPT) -> None:
    """Rows outside of a level's share do not matter to it, rows inside do."""
    fields = {"mlm": "mlm_ids", "matching": "match_presence", "denoise_text": "denoise_presence"}
    fields |= {"mvm_code": "image_codes", "mam_contrastive": "audio", "denoise_image": "draw_presence"}
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


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N]"""
    logits = logits.astype(np.float64)
    peak = logits.max(1)
    return np.log(np.exp(logits - peak[:, None]).sum(1)) + peak - logits[np.arange(len(labels)), labels]


def encode(opt: OPT, batch: Arrays, ids: str = "text_ids") -> tuple[Tensor, ...]:
    mask = Tensor(batch["text_mask"])
    image, image_mask = opt.encode_image((Tensor(batch["image"]),))
    audio, audio_mask = opt.audio_encoder(Tensor(batch["audio"]), Tensor(batch["audio_frames"]))
    return opt.text_encoder(Tensor(batch[ids]), mask), image, audio, mask, image_mask, audio_mask


def embed(opt: OPT, clean: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    text, image, audio, mask, image_mask, audio_mask = clean
    return opt.embed_text(text, mask), opt.embed_image(image, image_mask), opt.embed_audio(audio, audio_mask)


@pytest.mark.parametrize(("absent", "directions"), [((), 8), ((AUDIO,), 2), ((IMAGE,), 2)])
def test_contrastive_is_the_mean_of_the_directions_that_have_pairs(
    opt: OPT, absent: tuple[int, ...], directions: int
) -> None:
    """Text, picture, sound, and text and sound as one: between any two that some sample has both of."""
    batch = batch_with_repeats()
    batch["presence"][:, absent] = 0
    vectors, scale = [x.asnumpy() for x in embed(opt, encode(opt, batch))], float(opt.scale())
    both = vectors[TEXT] + vectors[AUDIO]
    vectors.append(both / np.linalg.norm(both, axis=1, keepdims=True))
    presence = np.column_stack([batch["presence"], batch["presence"][:, TEXT] * batch["presence"][:, AUDIO]])
    found = []
    for x, y in (*COUPLES, *(couple[::-1] for couple in COUPLES)):
        costs = []
        items = np.flatnonzero(presence[:, y])
        for row in np.flatnonzero(presence[:, x] * presence[:, y]):
            similar = scale * vectors[y][items] @ vectors[x][row]
            positives = np.flatnonzero(batch["image_id"][items] == batch["image_id"][row])
            costs.append(np.mean([cross_entropy(similar[None], np.array([p]))[0] for p in positives]))
        if costs:
            found.append(np.mean(costs))
    assert len(found) == directions
    assert losses(opt, only("contrastive"), batch)["contrastive"] == pytest.approx(np.mean(found), rel=1e-4)


def test_mlm_predicts_the_hidden_tokens_from_what_is_left(opt: OPT) -> None:
    batch = batch_with_repeats()
    fused = opt.cross_encoder(*encode(opt, batch, "mlm_ids"), Tensor(batch["presence"]))[0]
    logits = opt.masked_text_logits(fused, Tensor(batch["mlm_positions"])).asnumpy()
    costs = cross_entropy(logits, batch["mlm_labels"].ravel()).reshape(B, -1)
    rows, slots = np.nonzero(batch["mlm_weights"])
    mine = rows < 5
    expected = costs[rows[mine], slots[mine]].mean()
    assert losses(opt, only("mlm"), batch)["mlm"] == pytest.approx(expected, rel=1e-4)


def test_hidden_features_are_compared_with_the_clean_view(opt: OPT) -> None:
    """Patches and frames of the masked view are predicted; the target is what the encoder makes of the whole."""
    batch = batch_with_repeats()
    text, image, audio, mask, image_mask, audio_mask = encode(opt, batch)
    heads = {"mvm": opt.masked_image_head, "mam": opt.masked_audio_head}
    lengths = {"mvm": image.shape[1], "mam": audio.shape[1]}
    hidden = {}
    for name, length in lengths.items():
        places = np.zeros((B, length), np.float32)
        for row, slot in zip(*np.nonzero(batch[f"{name}_weights"]), strict=True):
            places[row, batch[f"{name}_positions"][row, slot]] = 1
        hidden[name] = Tensor(places)
    masked_image = opt.image_encoder(Tensor(batch["image"]), hidden["mvm"], heads["mvm"].vector)
    sound = Tensor(batch["audio"]), Tensor(batch["audio_frames"])
    masked_audio, _ = opt.audio_encoder(*sound, hidden["mam"], heads["mam"].vector)
    masked_text = opt.text_encoder(Tensor(batch["mlm_ids"]), mask)
    rows = (masked_text, masked_image, masked_audio, mask, image_mask, audio_mask, Tensor(batch["presence"]))
    fused = opt.cross_encoder(*rows)[0]
    config = replace(ALL, **{name: 0.0 for name in OBJECTIVES if name not in TOKEN_ROWS})
    found = losses(opt, config, batch)
    for name, loss, clean, first in (
        ("mvm", "mvm_feature", image, opt.first_image),
        ("mam", "mam_feature", audio, opt.first_audio),
    ):
        costs = []
        for row, slot in zip(*np.nonzero(batch[f"{name}_weights"]), strict=True):
            if row in ROWS[loss]:
                place = int(batch[f"{name}_positions"][row, slot])
                predicted = heads[name](fused[int(row), first + place].reshape(1, -1))[0].asnumpy()
                target = clean[int(row), place].asnumpy()
                target = (target - target.mean()) / np.sqrt(target.var() + 1e-6)
                costs.append(((predicted - target) ** 2).mean())
        assert found[loss] == pytest.approx(np.mean(costs), rel=1e-3), loss


def test_denoising_writes_each_next_token_up_to_the_end(opt: OPT) -> None:
    """[CLS] w₁ … wₙ predict w₁ … wₙ [SEP]; nothing is asked of padding, nor of rows that are given nothing."""
    batch = batch_with_repeats()
    batch["denoise_presence"][5] = 0
    fused, mask = opt.cross_encoder(*encode(opt, batch), Tensor(batch["denoise_presence"]))
    logits = opt.text_decoder(Tensor(batch["text_ids"][:, :-1]), fused, mask).asnumpy().reshape(B, -1, VOCAB)
    costs = []
    for row in ROWS["denoise_text"]:
        if batch["denoise_presence"][row].any():
            for place in range(1, int(batch["text_mask"][row].sum())):
                costs.extend(cross_entropy(logits[row, place - 1][None], batch["text_ids"][row, place][None]))
    assert losses(opt, only("denoise_text"), batch)["denoise_text"] == pytest.approx(np.mean(costs), rel=1e-4)


def test_matching_classifies_the_rows_that_were_built(opt: OPT) -> None:
    """Tokens, masks and embeddings of each part come from the sample that the row took it from."""
    batch = batch_with_repeats()
    text, image, audio, mask, image_mask, audio_mask = encode(opt, batch)
    vectors = embed(opt, (text, image, audio, mask, image_mask, audio_mask))
    n = len(ROWS["matching"])
    drawn = (batch["match_case"][:n], batch["match_presence"][:n], batch["image_id"], batch["presence"])
    *indices, weights = build_rows(*map(Tensor, drawn), *vectors, opt.scale(), Tensor(batch["match_noise"][:n]))
    t, i, a = (index.asnumpy() for index in indices)
    assert any((index != np.arange(n)).any() for index in (t, i, a))
    tokens, masks = (text, image, audio), (mask, image_mask, audio_mask)
    parts = [part[Tensor(index)] for group in (tokens, masks) for part, index in zip(group, (t, i, a), strict=True)]
    fused = opt.cross_encoder(*parts, Tensor(drawn[1]))[0]
    chosen = [vector[Tensor(index)] for vector, index in zip(vectors, (t, i, a), strict=True)]
    logits = opt.matching_head(fused[:, 0], *chosen, Tensor(drawn[1])).asnumpy()
    counts = weights.asnumpy() * (drawn[1].sum(1) > 1)
    expected = (cross_entropy(logits, drawn[0]) * counts).sum() / counts.sum()
    assert losses(opt, only("matching"), batch)["matching"] == pytest.approx(expected, rel=1e-4)


def test_a_row_that_shows_less_than_two_modalities_is_not_matched(opt: OPT) -> None:
    batch = tiny_batch(MODEL, B)
    batch["match_presence"][3] = (0, 1, 0)
    before = losses(opt, only("matching"), batch)
    batch["match_case"][3] = (batch["match_case"][3] + 1) % len(MATCH_CASES)
    assert losses(opt, only("matching"), batch) == before
    batch["match_presence"][:, 1:] = 0
    values, found = gradients(opt, only("matching"), batch)
    assert values["matching"] == 0 and not any(gradient.any() for gradient in found.values())


def test_matching_rows_of_one_picture_cost_nothing_they_cannot_know(opt: OPT) -> None:
    """One picture in the whole batch: only the rows that belong together remain."""
    batch = tiny_batch(MODEL, B)
    batch["image_id"][:] = 1
    before = losses(opt, only("matching"), batch)
    mismatched = np.flatnonzero(batch["match_case"] != MATCH_CASES.index("all"))
    batch["match_presence"][mismatched] = (1, 1, 1)
    batch["match_noise"][mismatched] = batch["match_noise"][mismatched, ::-1]
    assert losses(opt, only("matching"), batch) == before and before["matching"] > 0


def test_one_batch_is_overfitted_in_each_objective(graph: Callable[[Arrays], tuple[Values, Arrays]]) -> None:
    """To under a tenth of its first loss: samples of different pictures, with all they have."""
    batch = tiny_batch(MODEL, B)
    with run_mode("graph"):
        first = last = graph(batch)[0]
        for _ in range(300):
            if all(last[name] < 0.1 * first[name] for name in OBJECTIVES):
                break
            last = graph(batch)[0]
    for name in OBJECTIVES:
        assert last[name] < 0.1 * first[name], (name, first, last)


@pytest.mark.parametrize(("given", "column"), [("image", IMAGE), ("audio", AUDIO)])
def test_a_lone_modality_is_fused_at_its_own_length_for_the_same_loss(opt: OPT, given: str, column: int) -> None:
    batch = batch_with_repeats()
    batch["denoise_presence"][:] = np.eye(3, dtype=np.int32)[column] * batch["presence"][:, column : column + 1]
    objectives = Objectives(opt, replace(only("denoise_text"), denoise_given=(given,)), B)
    assert objectives.lone == column
    short = float(objectives(tensors(batch))[0])
    objectives.lone = None
    assert short == pytest.approx(float(objectives(tensors(batch))[0]), rel=1e-5)
