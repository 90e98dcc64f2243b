"""Each level's losses against numpy's on what the parts of the network give, and the rows that do not count."""

import numpy as np
import pytest
from mindspore import Tensor

from src.data.masking import sample_given
from src.data.schema import AUDIO, COUPLES, IMAGE, MATCH_CASES, TEXT
from src.models.opt import OPT
from src.objectives.hard_negatives import build_rows
from src.objectives.objectives import Objectives
from src.objectives.views import slots_to_mask
from tests.objectives import (
    MODEL,
    ROWS,
    TOKEN_ROWS,
    B,
    batch_with_repeats,
    build,
    gradients,
    losses,
    only,
    text_from,
    weighted,
)
from tests.oracles import OBJECTIVES, VOCAB, Arrays, tensors, tiny_batch


@pytest.fixture(scope="module")
def opt() -> OPT:
    return build()


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
def test_contrastive_is_the_mean_over_the_queries_of_all_directions(
    opt: OPT, absent: tuple[int, ...], directions: int
) -> None:
    """Text, image, audio, and text and audio as one: between any two that some sample has both of.

    Text and audio belong together by text; all else by image or by text.
    """
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
            same_text = batch["text_id"][items] == batch["text_id"][row]
            right = same_text | ((IMAGE in (x, y)) & (batch["image_id"][items] == batch["image_id"][row]))
            positives = np.flatnonzero(right)
            costs.append(np.mean([cross_entropy(similar[None], np.array([p]))[0] for p in positives]))
        if costs:
            found.append(costs)
    assert len(found) == directions and (absent or len({len(costs) for costs in found}) > 1)
    expected = np.mean(np.concatenate(found))
    assert losses(opt, only("contrastive"), batch)["contrastive"] == pytest.approx(expected, rel=1e-4)


def test_one_spoken_sample_weighs_as_one_sample(opt: OPT) -> None:
    """What the only audio clip of a batch adds is one query of six directions among the texts and images of all."""
    batch = tiny_batch(MODEL, B)
    batch["presence"][1:, AUDIO] = 0
    without = tiny_batch(MODEL, B)
    without["presence"][:, AUDIO] = 0
    alone, more = (losses(opt, only("contrastive"), part)["contrastive"] for part in (without, batch))
    # of audio's six directions those towards the only clip cost nothing; the others are its three queries
    rest = more * (2 * B + 6) - alone * 2 * B
    vectors, scale = [x.asnumpy() for x in embed(opt, encode(opt, batch))], float(opt.scale())
    both = vectors[TEXT][0] + vectors[AUDIO][0]
    asked = ((vectors[AUDIO][0], TEXT), (vectors[AUDIO][0], IMAGE), (both / np.linalg.norm(both), IMAGE))
    costs = [cross_entropy(scale * (vectors[which] @ vector)[None], np.array([0]))[0] for vector, which in asked]
    assert rest == pytest.approx(np.sum(costs), rel=1e-3)


def test_equal_texts_are_positives_and_other_captions_speech_is_not(opt: OPT) -> None:
    """The ids decide: text and image make the same difference, and speech of one image is not the other caption's."""
    batch = tiny_batch(MODEL, B)
    apart = losses(opt, only("contrastive"), batch)["contrastive"]
    batch["text_id"][1] = batch["text_id"][0]
    together = losses(opt, only("contrastive"), batch)["contrastive"]
    batch["image_id"][1] = batch["image_id"][0]
    assert losses(opt, only("contrastive"), batch)["contrastive"] == together, "by text or by image is the same"
    assert together != apart
    batch["text_id"][1] += 5000
    other_caption = losses(opt, only("contrastive"), batch)["contrastive"]
    assert other_caption not in (apart, together)
    batch["presence"][:, IMAGE] = 0  # only text and audio are left, by caption
    alone = losses(opt, only("contrastive"), batch)["contrastive"]
    batch["image_id"][1] += 5000
    assert losses(opt, only("contrastive"), batch)["contrastive"] == alone


def test_mlm_predicts_the_hidden_tokens_from_what_is_left(opt: OPT) -> None:
    batch = batch_with_repeats()
    fused = opt.cross_encoder(*encode(opt, batch, "mlm_ids"), Tensor(batch["presence"]))[0]
    logits = opt.masked_text_logits(fused, Tensor(batch["mlm_positions"])).asnumpy()
    costs = cross_entropy(logits, batch["mlm_labels"].ravel()).reshape(B, -1)
    rows, slots = np.nonzero(batch["mlm_weights"])
    mine = rows < 5
    expected = costs[rows[mine], slots[mine]].mean()
    assert losses(opt, only("mlm"), batch)["mlm"] == pytest.approx(expected, rel=1e-4)


def masked_view(opt: OPT, batch: Arrays) -> tuple[Tensor, dict[str, Tensor]]:
    """The fused tokens of the batch with all that it masks, and the clean tokens of images and audio clips."""
    _, image, audio, mask, image_mask, audio_mask = encode(opt, batch)
    heads = {"mvm": opt.masked_image_head, "mam": opt.masked_audio_head}
    clean = {"mvm": image, "mam": audio}
    hidden = {}
    for name, tokens in clean.items():
        places = np.zeros((B, tokens.shape[1]), np.float32)
        for row, slot in zip(*np.nonzero(batch[f"{name}_weights"]), strict=True):
            places[row, batch[f"{name}_positions"][row, slot]] = 1
        hidden[name] = Tensor(places)
    masked_image = opt.image_encoder(Tensor(batch["image"]), hidden["mvm"], heads["mvm"].vector)
    clip = Tensor(batch["audio"]), Tensor(batch["audio_frames"])
    masked_audio, _ = opt.audio_encoder(*clip, hidden["mam"], heads["mam"].vector)
    masked_text = opt.text_encoder(Tensor(batch["mlm_ids"]), mask)
    rows = (masked_text, masked_image, masked_audio, mask, image_mask, audio_mask, Tensor(batch["presence"]))
    return opt.cross_encoder(*rows)[0], clean


def masked_places(batch: Arrays, name: str, rows: range) -> list[tuple[int, int]]:
    """Row and place of everything that is masked in these rows."""
    found = zip(*np.nonzero(batch[f"{name}_weights"]), strict=True)
    return [(int(row), int(batch[f"{name}_positions"][row, slot])) for row, slot in found if row in rows]


def normalised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


TOKEN_LEVEL = weighted(**{name: 0.0 for name in OBJECTIVES if name not in TOKEN_ROWS})


def test_slots_that_are_not_used_hide_nothing() -> None:
    masked = slots_to_mask(Tensor([[2, 0, 0], [1, 3, 0]]), Tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), 5)
    assert masked.asnumpy().tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 1, 0]]


def test_hidden_features_are_compared_with_the_clean_view(opt: OPT) -> None:
    """Patches and frames of the masked view are predicted; the target is what the encoder makes of the whole."""
    batch = batch_with_repeats()
    fused, clean = masked_view(opt, batch)
    found = losses(opt, TOKEN_LEVEL, batch)
    for name, loss, head, first in (
        ("mvm", "mvm_feature", opt.masked_image_head, opt.first_image),
        ("mam", "mam_feature", opt.masked_audio_head, opt.first_audio),
    ):
        costs = []
        for row, place in masked_places(batch, name, ROWS[loss]):
            predicted = head(fused[row, first + place].reshape(1, -1))[0].asnumpy()
            costs.append(((predicted - normalised(clean[name][row, place].asnumpy())) ** 2).mean())
        assert found[loss] == pytest.approx(np.mean(costs), rel=1e-3), loss


def test_hidden_patches_are_told_by_their_codes(opt: OPT) -> None:
    """An image whose codes are not known is asked nothing."""
    batch = batch_with_repeats()
    batch["image_codes"][3] = -1
    fused, _ = masked_view(opt, batch)
    costs = []
    for row, place in masked_places(batch, "mvm", ROWS["mvm_code"]):
        if row != 3:
            logits = opt.masked_code_head(fused[row, opt.first_image + place].reshape(1, -1)).asnumpy()
            costs.extend(cross_entropy(logits, batch["image_codes"][row, place][None]))
    assert costs and losses(opt, TOKEN_LEVEL, batch)["mvm_code"] == pytest.approx(np.mean(costs), rel=1e-4)


def test_hidden_frames_are_told_from_the_other_hidden_ones_of_their_clip(opt: OPT) -> None:
    """By cosines over the temperature; a clip with one hidden frame has nothing to tell it from."""
    batch = batch_with_repeats()
    batch["mam_weights"][2, 1] = 0
    fused, clean = masked_view(opt, batch)
    places: dict[int, list[int]] = {}
    for row, place in masked_places(batch, "mam", ROWS["mam_contrastive"]):
        places.setdefault(row, []).append(place)
    costs = []
    for row, own in places.items():
        predicted = opt.masked_audio_head(fused[row])[opt.first_audio :].asnumpy()[own]
        target = np.stack([normalised(clean["mam"][row, place].asnumpy()) for place in own])
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (predicted, target)]
        cosines = unit[0] @ unit[1].T
        if len(own) > 1:
            costs.extend(cross_entropy(cosines / TOKEN_LEVEL.masking.temperature, np.arange(len(own))))
    assert min(map(len, places.values())) == 1 < len(costs)
    assert losses(opt, TOKEN_LEVEL, batch)["mam_contrastive"] == pytest.approx(np.mean(costs), rel=1e-3)


def test_denoising_generates_each_code_and_counts_rows_that_are_given_nothing(opt: OPT) -> None:
    """They teach guidance what images are without a condition; a row that has no image is asked nothing."""
    batch = batch_with_repeats()
    rows = [row for row in ROWS["denoise_image"] if batch["image_codes"][row].min() >= 0]
    batch["denoise_image_presence"][rows[0]] = 0
    batch["image_codes"][rows[1]] = -1
    fused, mask = opt.cross_encoder(*encode(opt, batch), Tensor(batch["denoise_image_presence"]))
    codes = np.maximum(batch["image_codes"], 0)
    logits = opt.image_decoder(opt.image_decoder.shift(Tensor(codes)), fused, mask).asnumpy()
    costs = cross_entropy(logits, codes.ravel()).reshape(codes.shape)
    kept = [row for row in rows if row != rows[1]]
    assert len(kept) > 1
    expected = costs[kept].mean()
    assert losses(opt, only("denoise_image"), batch)["denoise_image"] == pytest.approx(expected, rel=1e-4)


def test_denoising_writes_each_next_token_up_to_the_end(opt: OPT) -> None:
    """[CLS] w₁ … wₙ predict w₁ … wₙ [SEP]; nothing is asked of padding, nor of rows that are given nothing."""
    batch = batch_with_repeats()
    batch["denoise_text_presence"][8] = 0
    assert 8 in ROWS["denoise_text"]
    fused, mask = opt.cross_encoder(*encode(opt, batch), Tensor(batch["denoise_text_presence"]))
    logits = opt.text_decoder(Tensor(batch["text_ids"][:, :-1]), fused, mask).asnumpy().reshape(B, -1, VOCAB)
    costs = []
    for row in ROWS["denoise_text"]:
        if batch["denoise_text_presence"][row].any():
            for place in range(1, int(batch["text_mask"][row].sum())):
                costs.extend(cross_entropy(logits[row, place - 1][None], batch["text_ids"][row, place][None]))
    assert losses(opt, only("denoise_text"), batch)["denoise_text"] == pytest.approx(np.mean(costs), rel=1e-4)


def test_matching_classifies_the_rows_that_were_built(opt: OPT) -> None:
    """Tokens, masks and embeddings of each part come from the sample that the row took it from."""
    batch = batch_with_repeats()
    text, image, audio, mask, image_mask, audio_mask = encode(opt, batch)
    vectors = embed(opt, (text, image, audio, mask, image_mask, audio_mask))
    n = len(ROWS["matching"])
    drawn = [batch[name] for name in ("match_case", "match_presence", "image_id", "text_id", "presence")]
    drawn[:2] = (part[:n] for part in drawn[:2])
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


def test_matching_rows_of_one_image_cost_nothing_they_cannot_know(opt: OPT) -> None:
    """One image in the whole batch: only the rows that belong together remain."""
    batch = tiny_batch(MODEL, B)
    batch["image_id"][:] = 1
    before = losses(opt, only("matching"), batch)
    mismatched = np.flatnonzero(batch["match_case"] != MATCH_CASES.index("all"))
    batch["match_presence"][mismatched] = (1, 1, 1)
    batch["match_noise"][mismatched] = batch["match_noise"][mismatched, ::-1]
    assert losses(opt, only("matching"), batch) == before and before["matching"] > 0
    batch["match_presence"][mismatched] = 0
    left = [row for row in ROWS["matching"] if row not in mismatched]
    assert 0 < len(left) < len(ROWS["matching"])
    assert losses(opt, only("matching"), batch)["matching"] == pytest.approx(before["matching"], rel=1e-5)


@pytest.mark.parametrize(("given", "column"), [("image", IMAGE), ("audio", AUDIO)])
def test_a_lone_modality_is_fused_at_its_own_length_for_the_same_loss(opt: OPT, given: str, column: int) -> None:
    batch = batch_with_repeats()
    batch["denoise_text_presence"][:] = np.eye(3, dtype=np.int32)[column] * batch["presence"][:, column : column + 1]
    objectives = Objectives(opt, text_from(only("denoise_text"), given), B)
    assert objectives.single_modality == column
    short = float(objectives(tensors(batch))[0])
    objectives.single_modality = None
    assert short == pytest.approx(float(objectives(tensors(batch))[0]), rel=1e-5)


def test_two_that_are_given_together_are_both_read(opt: OPT) -> None:
    """An image with its audio clip, and no other choice: what is alike in all rows is not one modality."""
    batch, config = tiny_batch(MODEL, B), text_from(only("denoise_text"), "image+audio")
    batch["denoise_text_presence"][:] = (0, 1, 1)
    before = losses(opt, config, batch)["denoise_text"]
    for name in ("image", "audio"):
        other = {**batch, name: batch[name][::-1].copy()}
        assert losses(opt, config, other)["denoise_text"] != before, name


@pytest.mark.parametrize("contrastive", [0.0, 0.7])
@pytest.mark.parametrize(("given", "column"), [("image", IMAGE), ("audio", AUDIO)])
def test_a_row_without_the_only_given_modality_costs_nothing(
    opt: OPT, given: str, column: int, contrastive: float
) -> None:
    """Neither by the shortcut, which would read a blank one, nor by the general path, which would read another.

    Beside the contrastive loss the text's is the same mean over its own tokens.
    """
    batch, rng = tiny_batch(MODEL, B), np.random.default_rng(0)
    config = weighted(text_from(only("denoise_text"), given), contrastive=contrastive)
    fields = {IMAGE: ("image",), AUDIO: ("audio", "audio_frames")}
    for row in (0, 8):  # the loss reads rows 7 to 9
        batch["presence"][row, column] = 0
        for name in fields[column]:
            batch[name][row] = 0
    for row in range(B):
        batch["denoise_text_presence"][row] = sample_given((given,), batch["presence"][row], 0.0, rng)
    shortcut, general = (Objectives(opt, config, B) for _ in range(2))
    assert shortcut.single_modality == column
    general.single_modality = None
    values = [objectives(tensors(batch)) for objectives in (shortcut, general)]
    found = [float(value[-1]) for value in values]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert float(values[0][0]) == pytest.approx(float(values[1][0]), rel=1e-5), "the weighted sum"

    fused, mask = opt.cross_encoder(*encode(opt, batch), Tensor(batch["denoise_text_presence"]))
    logits = opt.text_decoder(Tensor(batch["text_ids"][:, :-1]), fused, mask).asnumpy().reshape(B, -1, VOCAB)
    costs = []
    for row in (7, 9):
        ends = int(batch["text_mask"][row].sum()) - 1
        costs.extend(cross_entropy(logits[row, :ends], batch["text_ids"][row, 1 : ends + 1]))
    assert found[0] == pytest.approx(np.mean(costs), rel=1e-4)
