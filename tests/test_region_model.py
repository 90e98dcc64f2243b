"""The model on a detector's regions and frames of features: encoders, objectives and where their targets come from."""

from collections.abc import Callable
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from src.config import ImageEncoderConfig, MaskingConfig, ObjectivesConfig, WeightsConfig
from src.losses.masked import feature_regression, normalised
from src.models.audio_encoder import FeatureEncoder
from src.models.image_encoder import RegionEncoder
from src.models.layers import gather_positions
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.table import TABLE, needed_fields
from src.objectives.views import slots_to_mask
from tests.oracles import (
    MASK_RATIO,
    VOCAB,
    Arrays,
    affine_slots,
    assert_parity,
    feature_model,
    norm_slots,
    random,
    randomise,
    run_mode,
    tensors,
    tiny_batch,
)

MODEL = feature_model()
B = 6
WEIGHTS = {"contrastive": 1.0, "mlm": 1.0, "mvm_feature": 1.0, "mvm_class": 1.0, "mam_feature": 1.0}
WEIGHTS |= {"mam_contrastive": 1.0, "matching": 1.0, "denoise_text": 1.0, "denoise_image": 1.0}
ALL = ObjectivesConfig(weights=WeightsConfig(**WEIGHTS), masking=MaskingConfig(ratio=MASK_RATIO))


class _Step(nn.Cell):
    """As training runs it: tensors in, losses out."""

    def __init__(self, objectives: Objectives) -> None:
        super().__init__(auto_prefix=False)
        self.objectives = objectives

    def construct(self, *given):
        batch = {}
        for i in range(len(self.objectives.fields)):
            batch[self.objectives.fields[i]] = given[i]
        return self.objectives(batch)

    def losses(self, batch: Arrays) -> dict[str, float]:
        values = self(*(Tensor(batch[name]) for name in self.objectives.fields))
        return dict(zip(("total", *self.objectives.names), map(float, values), strict=True))


class _Total(nn.Cell):
    """The first of what a step gives."""

    def __init__(self, step: _Step) -> None:
        super().__init__(auto_prefix=False)
        self.step = step

    def construct(self, *given):
        return self.step(*given)[0]


@pytest.fixture(scope="module")
def opt() -> OPT:
    network = OPT(MODEL, VOCAB)
    randomise(network, spread=0.2)
    return network


@pytest.fixture(scope="module")
def losses(opt: OPT) -> Callable[[Arrays], dict[str, float]]:
    """Every loss of a batch, in one graph that is compiled once."""
    step = _Step(Objectives(opt, ALL, B))

    def run(batch: Arrays) -> dict[str, float]:
        with run_mode("graph"):
            return step.losses(batch)

    return run


def only(*names: str) -> ObjectivesConfig:
    return ObjectivesConfig(
        weights=WeightsConfig(**{"contrastive": 0.0, **dict.fromkeys(names, 1.0)}),
        masking=MaskingConfig(ratio=MASK_RATIO),
    )


class _Paper(torch.nn.Module):
    """Two projections, summed, layer norm."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.features = torch.nn.Linear(config.region_dim, config.width)
        self.boxes = torch.nn.Linear(7, config.width)
        self.norm = torch.nn.LayerNorm(config.width)

    def forward(self, features: torch.Tensor, boxes: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.norm(self.features(features) + self.boxes(boxes))


def test_without_layers_it_is_the_encoder_of_the_paper() -> None:
    config = feature_model(layers=0).image
    oracle = _Paper(config)
    slots = affine_slots("feature_project.", oracle.features) | affine_slots("box_project.", oracle.boxes)
    slots |= norm_slots("norm.", oracle.norm)
    inputs = random(2, 5, config.region_dim), random(2, 5, 7), np.ones((2, 5), np.int32)
    assert_parity(RegionEncoder(config), inputs, oracle, slots)


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_regions_have_no_influence(layers: int) -> None:
    encoder = RegionEncoder(feature_model(layers).image)
    randomise(encoder)
    features, boxes = random(3, 5, 9), random(3, 5, 7)
    mask = (np.arange(5) < np.array([[2], [4], [5]])).astype(np.int32)
    before = encoder(Tensor(features), Tensor(boxes), Tensor(mask)).asnumpy()
    features[mask == 0], boxes[mask == 0] = 50, -9
    after = encoder(Tensor(features), Tensor(boxes), Tensor(mask)).asnumpy()
    assert np.array_equal(before[mask == 1], after[mask == 1])
    short = encoder(Tensor(features[:1, :2]), Tensor(boxes[:1, :2]), Tensor(mask[:1, :2])).asnumpy()
    np.testing.assert_allclose(short, before[:1, :2], atol=1e-5)


def test_regions_have_no_order() -> None:
    """Permuting the regions permutes the tokens: their boxes are all that says where they are."""
    encoder = RegionEncoder(feature_model(layers=2).image)
    randomise(encoder)
    features, boxes, mask = random(2, 5, 9), random(2, 5, 7), np.array([[1, 1, 1, 1, 0], [1] * 5], np.int32)
    order = np.array([3, 0, 4, 2, 1])
    whole = encoder(Tensor(features), Tensor(boxes), Tensor(mask)).asnumpy()
    turned = encoder(*(Tensor(x[:, order]) for x in (features, boxes, mask))).asnumpy()
    np.testing.assert_allclose(turned, whole[:, order], atol=1e-5)
    moved = encoder(Tensor(features), Tensor(boxes[:, order]), Tensor(mask)).asnumpy()
    assert np.abs(moved - whole).max() > 1e-2


@pytest.mark.parametrize("layers", [0, 2])
def test_frames_behind_the_end_have_no_influence(layers: int) -> None:
    config = replace(feature_model(layers).audio, stride=2)
    encoder = FeatureEncoder(config)
    randomise(encoder)
    audio, frames = random(3, 6, 11), np.array([1, 4, 6], np.int32)
    before, mask = (x.asnumpy() for x in encoder(Tensor(audio), Tensor(frames)))
    assert mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    audio[0, 2:], audio[1, 4:] = 40, -40
    after = encoder(Tensor(audio), Tensor(frames))[0].asnumpy()
    assert np.array_equal(before[mask == 1], after[mask == 1])
    masked = encoder(Tensor(audio), Tensor(frames), Tensor(np.ones((3, 3), np.float32)), Tensor(random(1, 1, 8)))
    other = encoder(Tensor(2 * audio), Tensor(frames), Tensor(np.ones((3, 3), np.float32)), Tensor(random(1, 1, 8)))
    assert np.array_equal(masked[0].asnumpy(), other[0].asnumpy()), "masked frames leak"


def test_batch_and_objectives_name_the_same_fields() -> None:
    batch = tiny_batch(MODEL, B)
    assert "image" not in batch and set(needed_fields(ALL, "region")) == set(batch) - {"sample_id"}


def test_the_stored_features_are_the_target(losses: Callable[[Arrays], dict[str, float]]) -> None:
    """Not zeros that the loader left, nor the model's own features: other stored numbers, another loss."""
    batch = tiny_batch(MODEL, B)
    before = losses(batch)
    row = int(np.argmax(batch["mvm_weights"].sum(1)))
    place = int(batch["mvm_positions"][row, 0])
    batch["regions"][row, place] = -batch["regions"][row, place]  # masked: only the target changes
    row = int(np.argmax(batch["mam_weights"].sum(1)))
    frame = int(batch["mam_positions"][row, 0])
    batch["audio"][row, frame] = -batch["audio"][row, frame]
    after = losses(batch)
    assert abs(after["mvm_feature"] - before["mvm_feature"]) > 1e-3
    assert abs(after["mam_feature"] - before["mam_feature"]) > 1e-3
    assert after["mvm_class"] == before["mvm_class"], "the masked region's feature leaks into what is predicted"


def test_regression_aims_at_the_normalised_features_of_the_hidden_regions(
    opt: OPT, losses: Callable[[Arrays], dict[str, float]]
) -> None:
    batch = tiny_batch(MODEL, B)
    given = tensors(batch)
    masked = slots_to_mask(given["mvm_positions"], given["mvm_weights"], 5)
    inputs = (given["regions"], given["region_boxes"], given["region_mask"])
    image, image_mask = opt.encode_image(inputs, masked, opt.masked_image_head.vector)
    masked = slots_to_mask(given["mam_positions"], given["mam_weights"], 6)
    audio, audio_mask = opt.audio_encoder(given["audio"], given["audio_frames"], masked, opt.masked_audio_head.vector)
    text = opt.text_encoder(given["mlm_ids"], given["text_mask"])
    masks = (given["text_mask"], image_mask, audio_mask)
    fused, _ = opt.cross_encoder(text, image, audio, *masks, given["presence"])
    predicted = opt.masked_image_head(opt.fused_image(fused, given["mvm_positions"]))
    target = normalised(gather_positions(given["regions"], given["mvm_positions"]))
    expected = float(feature_regression(predicted, target, given["mvm_weights"]))
    assert losses(batch)["mvm_feature"] == pytest.approx(expected, rel=1e-4)


def test_only_known_classes_count(losses: Callable[[Arrays], dict[str, float]]) -> None:
    batch = tiny_batch(MODEL, B)
    before = losses(batch)["mvm_class"]
    masked = np.zeros_like(batch["region_mask"])
    for row, (places, weights) in enumerate(zip(batch["mvm_positions"], batch["mvm_weights"], strict=True)):
        masked[row, places[weights > 0]] = 1
    known = (batch["region_classes"] >= 0) & (masked == 1)
    assert known.any() and before > 0
    seen = batch | {"region_classes": np.where(masked == 1, batch["region_classes"], 0)}
    assert losses(seen)["mvm_class"] == before, "classes of what is not masked are read"
    others = batch | {"region_classes": np.where(known, (batch["region_classes"] + 1) % 6, batch["region_classes"])}
    assert losses(others)["mvm_class"] != before
    unknown = batch | {"region_classes": np.full_like(batch["region_classes"], -1)}
    assert losses(unknown)["mvm_class"] == 0


def test_padding_has_no_influence_on_any_loss(losses: Callable[[Arrays], dict[str, float]]) -> None:
    batch = tiny_batch(MODEL, B)
    assert (batch["region_mask"] == 0).any() and (batch["audio_frames"] < 6).any()
    before = losses(batch)
    batch["regions"][batch["region_mask"] == 0] = 9
    batch["region_boxes"][batch["region_mask"] == 0] = 3
    for row, frames in enumerate(batch["audio_frames"]):
        batch["audio"][row, frames:] = 7
    assert losses(batch) == pytest.approx(before, rel=1e-5) and min(before.values()) > 0


@pytest.mark.parametrize("name", ["mvm_class", "mvm_feature"])
def test_gradient_reaches_what_it_should(opt: OPT, name: str) -> None:
    objectives = Objectives(opt, only(name), B)
    parameters = [parameter for _, parameter in opt.parameters_and_names()]
    batch = tensors(tiny_batch(MODEL, B))
    gradients = ms.grad(lambda: objectives(batch)[0], None, parameters)()
    moved = [np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients]
    assert {p.name.split(".")[0] for p, reached in zip(parameters, moved, strict=True) if reached} == set(
        TABLE[name].parts
    )


def test_the_graph_gives_the_same_losses_and_they_fall() -> None:
    batch, network = tiny_batch(MODEL, B), OPT(MODEL, VOCAB)
    objectives = Objectives(network, only("mvm_feature", "mvm_class", "mam_feature", "mam_contrastive"), B)
    step = _Step(objectives)
    eager = step.losses(batch)
    with run_mode("graph"):
        assert step.losses(batch) == pytest.approx(eager, rel=1e-4)
        train = nn.TrainOneStepCell(_Total(step), nn.Adam(network.trainable_params(), 3e-3))
        for _ in range(40):
            train(*(Tensor(batch[name]) for name in objectives.fields))
        later = step.losses(batch)
    assert all(later[name] < 0.9 * eager[name] for name in objectives.names), (eager, later)
