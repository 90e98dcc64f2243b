"""One test for each mistake that earlier implementations of OPT made, named for the mistake.

Where another file already tests the thing in depth, :data:`ELSEWHERE` names that test instead.
"""

import ast
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn

from src.config import Config, ObjectivesConfig, WeightsConfig, load_config
from src.data.pipeline import Loader
from src.data.schema import IMAGE, TEXT
from src.data.tokenizer import Tokenizer
from src.evaluation.retrieval import RetrievalEvaluator
from src.inference.encode import Items
from src.inference.engine import Engine
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.objectives.table import needed_fields
from tests.oracles import VOCAB, tensors, tiny_batch, tiny_model

ROOT = Path(__file__).parent.parent

ELSEWHERE = {
    "the contrastive loss is sign-inverted": (
        "test_losses.py::test_a_perfect_match_costs_nothing_and_the_opposite_a_lot"
    ),
    "the contrastive loss of masked audio is sign-inverted": (
        "test_masked_losses.py::test_a_perfect_match_costs_almost_nothing_and_an_opposite_one_a_lot"
    ),
    "features to regress to are zeros, or of the masked view": (
        "test_level_losses.py::test_hidden_features_are_compared_with_the_clean_view"
    ),
    "features to regress to have a gradient": (
        "test_masked_losses.py::test_normalised_has_mean_zero_and_variance_one_and_no_gradient"
    ),
    "the last code of an image is dropped": "test_image_decoder.py::test_every_code_and_every_position_is_trained",
    "codes are shifted by one": ("test_image_decoder.py::test_input_begins_with_bos_and_ends_before_the_last_code"),
    "targets are lost between collate and loader": "test_masking.py::test_hidden_words_are_whole_and_labelled",
    "the loader's targets do not reach the loss": (
        "test_level_losses.py::test_mlm_predicts_the_hidden_tokens_from_what_is_left"
    ),
    "the features of the regression are lost, so that it aims at zeros": (
        "test_region_model.py::test_the_stored_features_are_the_target"
    ),
    "the last token of the target is dropped": (
        "test_level_losses.py::test_denoising_writes_each_next_token_up_to_the_end"
    ),
    "a decode loop stops after one token": "test_generation.py::test_stops_at_the_end",
    "hypotheses are not segmented while references are": (
        "test_caption_metrics.py::test_equal_to_the_reference_implementation"
    ),
    "an absent modality's place is attended": "test_cross_encoder.py::test_absent_content_has_no_influence",
    "absence is a vector of zeros": (
        "test_cross_encoder.py::test_gradient_goes_to_the_absent_embedding_and_not_to_the_absent_content"
    ),
    "later tasks starve": "test_objectives.py::test_each_level_reads_its_share_of_the_batch",
    "the mix of what denoising is given is ignored": "test_masking.py::test_given",
    "N² cross-encoder passes for retrieval": "test_evaluate.py::test_every_item_is_encoded_once",
    "another caption of the image is a negative of the contrast": (
        "test_losses.py::test_items_of_the_same_image_are_never_negatives"
    ),
    "another caption of the image is a mismatch": "test_matching.py::test_every_row_is_what_its_case_says",
    "another caption of the image is a miss": "test_recall.py::test_another_caption_of_the_image_counts",
    "flags typed bool, so that False is true": "test_config.py::test_booleans_are_booleans",
    "config keys that nothing reads": "test_config.py::test_every_key_is_read",
    "no CPU path": "test_objectives.py::test_one_batch_is_overfitted_in_each_objective",
    "no data preparation": "test_prepare.py::test_manifest",
}


@pytest.mark.parametrize("mistake", ELSEWHERE)
def test_has_its_test(mistake: str) -> None:
    file, _, name = ELSEWHERE[mistake].partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


class Untouchable(nn.Cell):
    """A part that must not be run."""

    def construct(self, *inputs):
        raise AssertionError("a loss of weight 0 is computed")


def test_losses_of_weight_zero_are_computed() -> None:
    model, config = tiny_model(), ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    network = OPT(model, VOCAB)
    parts = ("cross_encoder", "masked_text_head", "masked_image_head", "masked_audio_head", "masked_code_head")
    for part in (*parts, "matching_head", "text_decoder", "image_decoder"):
        setattr(network, part, Untouchable())
    batch = tensors(tiny_batch(model, 4))
    losses = Objectives(network, config, 4)({name: batch[name] for name in needed_fields(config)})
    assert len(losses) == 2 and float(losses[0]) == float(losses[1]) > 0


def test_begin_end_and_padding_are_one_token() -> None:
    for path in (ROOT / "config" / "vocab").glob("*.txt"):
        tokenizer = Tokenizer(path)
        special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.unk_id]
        assert len(set(special)) == 5 and not set(special) & set(tokenizer.ordinary_ids.tolist())
        ids, mask = tokenizer.encode("红", 8)
        assert ids[0] == tokenizer.cls_id and ids[mask.sum() - 1] == tokenizer.sep_id
        assert (ids[mask.sum() :] == tokenizer.pad_id).all() and mask.sum() < 8


def test_the_end_of_the_text_is_never_learned() -> None:
    """The last target of the shortest text is its [SEP]: a wrong end costs something."""
    model = tiny_model()
    config = ObjectivesConfig(weights=WeightsConfig(contrastive=0.0, denoise_text=1.0))
    objectives, batch = Objectives(OPT(model, VOCAB), config, 4), tiny_batch(model, 4)
    before = float(objectives(tensors(batch))[0])
    ends = batch["text_mask"].sum(1) - 1
    batch["text_ids"][np.arange(4), ends] = 9
    assert float(objectives(tensors(batch))[0]) != before


def test_the_vocabulary_has_no_room_for_its_last_id() -> None:
    """Read, masked and generated: the highest id is a token like any other."""
    model = tiny_model()
    config = ObjectivesConfig(weights=WeightsConfig(contrastive=0.0, mlm=1.0, denoise_text=1.0))
    batch = tiny_batch(model, 4)
    for name in ("text_ids", "mlm_ids", "mlm_labels"):
        batch[name][batch[name] >= 5] = VOCAB - 1
    losses = [float(x) for x in Objectives(OPT(model, VOCAB), config, 4)(tensors(batch))]
    assert all(0 < loss < 2 * np.log(VOCAB) for loss in losses[1:])


def test_an_epoch_is_cut_short_for_what_comes_last(tiny: Config) -> None:
    """The samples that a step could not take at an epoch's end are taken by the step that begins the next one."""
    loader = Loader(replace(tiny, data=replace(tiny.data, batch_size=8)), "train")
    size = len(loader.dataset)
    assert size % 8
    taken = np.concatenate([batch["sample_id"] for batch in islice(loader.batches(), size)])
    assert (np.bincount(taken) == 8).all()


def test_labels_of_the_directions_are_swapped() -> None:
    """``text_to_image`` asks with a text: here one of two texts finds its image, while both images find their text."""
    similarity = np.array([[0.8, 0.1], [0.7, 0.6]], np.float32)  # text by image
    vectors = {TEXT: similarity, IMAGE: np.eye(2, dtype=np.float32)}
    nothing, numbers = np.zeros((2, 1, 1), np.float32), np.arange(2)
    items = {
        m: Items(nothing, np.ones((2, 1), np.int32), x, numbers, numbers, texts=numbers + 5, inputs=numbers)
        for m, x in vectors.items()
    }
    engine = Engine(Config(), OPT(tiny_model(), VOCAB))
    metrics, _, _ = RetrievalEvaluator(engine).evaluate(items, depth=0)
    assert (metrics["text_to_image"]["R@1"], metrics["image_to_text"]["R@1"]) == (0.5, 1.0)


def test_settings_choose_the_validation_split_for_training() -> None:
    for path in (ROOT / "config").rglob("*.yaml"):
        data, evaluation = load_config(path).data, load_config(path).eval
        assert data.train_split == "train" and evaluation.split != "train" and data.eval_split != "train", path
        assert data.eval_split != evaluation.split, f"{path}: settings are chosen on what is reported"


def test_sizes_are_constants() -> None:
    """No length or width of the fused sequence is fixed: two models of other sizes throughout."""
    small = tiny_model()
    other = replace(small, text=replace(small.text, max_len=9), audio=replace(small.audio, max_frames=20))
    lengths = [OPT(model, VOCAB).cross_encoder.length for model in (small, other)]
    assert lengths == [1 + 7 + 4 + 6, 1 + 9 + 4 + 5]


def test_every_command_is_a_script_of_its_own() -> None:
    """Four entry points that parse, build and run; a task adds none."""
    commands = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("*.py")}
    assert set(commands) <= {"train.py", "eval.py", "infer.py", "export.py", "mindspore_hub_conf.py"}
    assert all(lines <= 80 for lines in commands.values()), commands


def test_gains_biases_and_positions_decay() -> None:
    decays = pytest.importorskip("src.training.optimizer").decays
    decayed = {p.name for p in OPT(tiny_model(), VOCAB).trainable_params() if decays(p)}
    left = ("gain", "shift", "bias", "positions", "log_scale", "cls", "modality", "absent", "vector")
    everything = {p.name for p in OPT(tiny_model(), VOCAB).trainable_params()}
    assert not {name for name in decayed if name.endswith(left)}
    assert all(any(name.endswith(end) for name in everything) for end in left)
    assert {name for name in everything if name.endswith(("weight", "tokens"))} <= decayed


def test_the_device_is_asked_for_everywhere() -> None:
    """What depends on the device asks one function of one file."""
    for path in (ROOT / "src").rglob("*.py"):
        if path != ROOT / "src" / "runtime.py":
            assert "device_target" not in path.read_text(encoding="utf-8"), path
