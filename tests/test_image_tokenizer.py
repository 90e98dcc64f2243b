"""The image tokenizer: lookup, moving codebook, straight-through gradient, training, resumption, evaluation."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import kill_after, png, tiny_dataset
from mindspore import Tensor
from test_board import images as shown_images

from src.checkpoints.checkpoint import OPTIMIZER
from src.checkpoints.files import MODEL, read_tensors
from src.checkpoints.places import locate
from src.config import Config, ConfigError, ImageTokenizerConfig, ModelConfig, OptimizerConfig, TrainConfig, load_config
from src.data.errors import DataError
from src.data.images import ImageLoader
from src.data.record import Record
from src.data.schema import IMAGE
from src.data.store import Dataset
from src.data.writer import DatasetWriter
from src.evaluation.reconstruction import Reconstruct, ReconstructionEvaluator, perplexity, psnr
from src.evaluation.run import Evaluation
from src.inference.engine import Engine
from src.models.build import build_model
from src.models.image_tokenizer import SMOOTHING, Codebook, CodebookStatistics, CodebookUpdate, ImageTokenizer
from src.models.patches import split_patches
from src.objectives.image_tokenizer import TokenizerObjectives
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from src.training.step import NonFiniteError, TrainStep
from src.training.trainer import Trainer, trained_parameters
from tests.oracles import take

ROOT = Path(__file__).parent.parent
TINY = ImageTokenizerConfig(size=16, side=4, codes=12, code_dim=6, width=16, layers=1, heads=2, ffn=32)
B, C = 4, TINY.side**2


@pytest.fixture
def pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.fixture
def graph():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


def settings(**tokenizer) -> Config:
    config = Config(task="image_tokenizer", model=ModelConfig(image_tokenizer=replace(TINY, **tokenizer)))
    return replace(
        config,
        data=replace(config.data, batch_size=B),
        optimizer=OptimizerConfig(lr=3e-3, warmup_steps=2),
        train=TrainConfig(steps=10),
    )


def images(count: int = B, seed: int = 0) -> np.ndarray:
    """Two colours each, uint8 [n, 16, 16, 3]."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return np.kron(colours, np.ones((1, 8, 8, 1), np.uint8))


def filled(config: ImageTokenizerConfig = TINY, seed: int = 0) -> ImageTokenizer:
    """A tokenizer whose codebook holds something."""
    ms.set_seed(seed)
    model = ImageTokenizer(config)
    vectors = np.random.default_rng(seed).standard_normal(model.codebook.vectors.shape).astype(np.float32)
    model.codebook.vectors.set_data(Tensor(vectors))
    return model


def make_step(config: Config, model: ImageTokenizer) -> TrainStep:
    objectives = TokenizerObjectives(model, config)
    rates = learning_rates(config.optimizer, config.train.steps)
    optimizer = build_optimizer(trained_parameters(model, objectives), config.optimizer, rates)
    return TrainStep(objectives, optimizer, config.optimizer.clip_norm)


def state_of(model: ImageTokenizer) -> dict[str, np.ndarray]:
    return {name: value.asnumpy().copy() for name, value in model.parameters_and_names()}


def test_the_nearest_code_is_found(pynative):
    rng = np.random.default_rng(3)
    codebook = Codebook(TINY)
    vectors, rows = rng.standard_normal((12, 6)).astype(np.float32), rng.standard_normal((50, 6)).astype(np.float32)
    vectors *= rng.uniform(0.2, 3.0, (12, 1)).astype(np.float32)  # the lengths must count
    codebook.vectors.set_data(Tensor(vectors))
    expected = ((rows[:, None] - vectors) ** 2).sum(-1).argmin(1)
    codes = codebook(Tensor(rows))
    assert codes.dtype == ms.int32 and len(set(expected)) > 5
    np.testing.assert_array_equal(codes.asnumpy(), expected)
    np.testing.assert_array_equal(codebook.look_up(codes).asnumpy(), vectors[expected])


def moving_average(book, counts, sums, candidates, config):
    """One update in numpy, in double precision."""
    n = book["n"] * config.ema_decay + counts * (1 - config.ema_decay)
    m = book["m"] * config.ema_decay + sums * (1 - config.ema_decay)
    dead = n < n.mean() * config.revive_below
    m[dead], n[dead] = candidates[dead] * n.mean(), n.mean()
    smooth = (n + SMOOTHING) / (n.sum() + len(n) * SMOOTHING) * n.sum()
    return {"n": n, "m": m}, m / smooth[:, None], dead


def test_the_codebook_moves_as_in_numpy(graph):
    rng, rows = np.random.default_rng(5), 40
    config = replace(TINY, ema_decay=0.8, revive_below=0.3)
    codebook = Codebook(config)
    observe, update = CodebookStatistics(codebook, rows, seed=7), CodebookUpdate(codebook, config, rows)
    order = np.random.default_rng(7).permutation(rows)
    book, begun, offset = {"n": np.zeros(12), "m": np.zeros((12, 6))}, [], 0
    for _ in range(6):
        encoded = rng.standard_normal((rows, 6)).astype(np.float32)
        codes = rng.choice(4 + rng.integers(0, 8), rows).astype(np.int32)
        found = observe(Tensor(encoded), Tensor(codes))
        onehot = np.eye(12)[codes]
        candidates = encoded[order[(np.arange(12) + offset) % rows]]
        for ours, theirs in zip(found, (onehot.sum(0), onehot.T @ encoded, candidates), strict=True):
            np.testing.assert_allclose(ours.asnumpy(), theirs, rtol=1e-5, atol=1e-5)
        held = state_of(codebook)
        update(Tensor(False), found)
        for name, value in state_of(codebook).items():
            np.testing.assert_array_equal(value, held[name], err_msg=f"{name} moved in a step that changes nothing")
        revived = update(Tensor(True), found)
        book, vectors, dead = moving_average(book, onehot.sum(0), onehot.T @ encoded, candidates, config)
        np.testing.assert_allclose(codebook.counts.asnumpy(), book["n"], rtol=1e-5)
        np.testing.assert_allclose(codebook.vectors.asnumpy(), vectors, rtol=1e-4, atol=1e-5)
        assert int(revived.asnumpy()) == dead.sum()
        begun.append(int(dead.sum()))
        offset = (offset + 12) % rows
    assert max(begun) > 0 and min(begun[1:]) < max(begun)


def test_dead_codes_begin_anew_and_living_ones_do_not(graph):
    codebook = Codebook(TINY)
    update = CodebookUpdate(codebook, TINY, rows=24)
    counts = np.array([5.0] * 6 + [0.001] * 6, np.float32)
    sums = np.arange(72, dtype=np.float32).reshape(12, 6) * counts[:, None]
    codebook.counts.set_data(Tensor(counts))
    codebook.sums.set_data(Tensor(sums))
    candidates = np.full((12, 6), -1.0, np.float32) - np.arange(12, dtype=np.float32)[:, None]
    found = Tensor(np.zeros(12, np.float32)), Tensor(np.zeros((12, 6), np.float32)), Tensor(candidates)
    assert int(update(Tensor(True), found).asnumpy()) == 6
    vectors = codebook.vectors.asnumpy()
    np.testing.assert_allclose(vectors[:6], sums[:6] / counts[:6, None], rtol=1e-4)
    np.testing.assert_allclose(vectors[6:], candidates[6:], rtol=1e-4)
    assert int(update(Tensor(True), found).asnumpy()) == 0, "a code that has just begun has time to be found"


def test_the_first_batch_fills_a_codebook_of_which_no_code_is_replaced(graph):
    """With revive_below=0: what the batch uses is its own, all other codes begin at its rows; later none does."""
    config = replace(TINY, revive_below=0.0)
    codebook = Codebook(config)
    update = CodebookUpdate(codebook, config, rows=24)
    counts = np.array([8.0] * 3 + [0.0] * 9, np.float32)
    sums = np.arange(72, dtype=np.float32).reshape(12, 6) * counts[:, None]
    candidates = -1.0 - np.arange(72, dtype=np.float32).reshape(12, 6)
    assert int(update(Tensor(True), (Tensor(counts), Tensor(sums), Tensor(candidates))).asnumpy()) == 9
    vectors = codebook.vectors.asnumpy()
    np.testing.assert_allclose(vectors[:3], sums[:3] / 8, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(vectors[3:], candidates[3:], rtol=1e-3)
    nothing = Tensor(np.zeros(12, np.float32)), Tensor(np.zeros((12, 6), np.float32)), Tensor(candidates * 2)
    for _ in range(200):
        assert int(update(Tensor(True), nothing).asnumpy()) == 0


def test_metrics_say_how_many_codes_are_used_and_how_evenly(pynative):
    """Perplexity is the exponential of the entropy of the codes' shares; half of the codebook lies far away."""
    model = filled()
    vectors = model.codebook.vectors.asnumpy().copy()
    vectors[6:] += 100.0
    model.codebook.vectors.set_data(Tensor(vectors))
    batch = Tensor(images())
    found, _ = TokenizerObjectives(model, settings())({"image": batch})
    total, reconstruction, commitment, perplexity, usage = map(float, found)
    shares = np.bincount(model(batch)[4].asnumpy(), minlength=12) / (B * TINY.side**2)
    used = shares[shares > 0]
    assert 1 < len(used) <= 6 and usage == pytest.approx(len(used) / 12)
    assert perplexity == pytest.approx(np.exp(-(used * np.log(used)).sum()), rel=1e-5)
    assert total == pytest.approx(reconstruction + TINY.commitment * commitment, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_offer_whole_rows_in_turn(pynative, ranks):
    rng = np.random.default_rng(0)
    encoded = [rng.standard_normal((20, 6)).astype(np.float32) for _ in range(ranks)]
    codes = Tensor(np.zeros(20, np.int32))
    made = [
        CodebookStatistics(Codebook(TINY), 20, 1, rank, ranks)(Tensor(encoded[rank]), codes) for rank in range(ranks)
    ]
    mean = np.mean([part[2].asnumpy() for part in made], 0)
    for code, row in enumerate(mean):
        distances = np.abs(encoded[code % ranks] - row).max(1)
        assert distances.min() < 1e-6


def test_straight_through_gradient_equals_torch(pynative):
    torch = pytest.importorskip("torch")
    model = filled()
    image = Tensor(images())
    patches = split_patches(image, model.side, model.patch)
    start = model.features(patches).asnumpy()
    weights = {name: torch.tensor(value) for name, value in state_of(model).items()}
    weight = 0.25

    def loss(encoded):
        codes = model.codebook(encoded)
        vectors = model.codebook.look_up(codes)
        decoded = model.decode_vectors(encoded + ms.ops.stop_gradient(vectors - encoded))
        commitment = ms.ops.square(encoded - ms.ops.stop_gradient(vectors)).mean()
        return ms.ops.square(decoded - patches).mean() + weight * commitment

    ours = ms.grad(loss)(Tensor(start)).asnumpy()
    # in PyTorch: the decoder's gradient at the codes' vectors, and the commitment's own
    vectors = weights["codebook.vectors"]
    encoded = torch.tensor(start, requires_grad=True)
    codes = torch.cdist(encoded.detach(), vectors).argmin(1)
    through = encoded + (vectors[codes] - encoded).detach()

    class Decoder(torch.autograd.Function):
        """Our decoder's loss at a point, with its gradient there."""

        @staticmethod
        def forward(ctx, point):
            at = Tensor(point.detach().numpy())
            value, ctx.slope = ms.value_and_grad(lambda z: ms.ops.square(model.decode_vectors(z) - patches).mean())(at)
            return torch.tensor(float(value))

        @staticmethod
        def backward(ctx, upstream):
            return torch.tensor(ctx.slope.asnumpy()) * upstream

    total = Decoder.apply(through) + weight * ((encoded - vectors[codes]) ** 2).mean()
    total.backward()
    np.testing.assert_allclose(ours, encoded.grad.numpy(), rtol=1e-4, atol=1e-7)
    assert np.abs(ours).max() > 1e-5

    found = model(image)
    trained = list(model.encoder.trainable_params())
    gradients = ms.grad(lambda x: ms.ops.square(model(x)[1] - patches).mean(), None, trained)(image)
    assert max(np.abs(g.asnumpy()).max() for g in gradients) > 1e-6, "nothing reaches the encoder"
    np.testing.assert_array_equal(found[4].asnumpy(), codes.numpy())


def test_codes_and_images_have_their_shapes(graph):
    model = filled().set_train(False)
    decoded, codes = Reconstruct(model)(Tensor(images()))
    assert codes.shape == (B, C) and codes.dtype == ms.int32
    assert decoded.shape == (B, 16, 16, 3) and decoded.dtype == ms.uint8
    np.testing.assert_array_equal(model.decode(codes).asnumpy(), decoded.asnumpy())
    assert len(np.unique(codes.asnumpy())) > 1 and codes.asnumpy().max() < TINY.codes


def test_cutting_an_image_into_patches_and_back_loses_nothing(pynative):
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    model = ImageTokenizer(TINY)
    patches = split_patches(Tensor(image), model.side, model.patch)
    np.testing.assert_array_equal(model.join(patches).asnumpy(), image)
    corner = image[1, 4:8, 8:12].reshape(-1) / 127.5 - 1  # row 1, column 2 of the grid
    np.testing.assert_allclose(patches.asnumpy()[1, 1 * 4 + 2], corner, atol=1e-6)
    np.testing.assert_array_equal(model.join(patches * 999.0).asnumpy() % 255, 0)  # beyond the range it is cut off


def test_one_batch_is_learned_and_graph_equals_pynative():
    config = replace(settings(), train=TrainConfig(steps=80))
    mode, histories = ms.get_context("mode"), []
    try:
        for kind, steps in ((ms.PYNATIVE_MODE, 4), (ms.GRAPH_MODE, 80)):
            ms.set_context(mode=kind)
            ms.set_seed(1)
            step = make_step(config, ImageTokenizer(TINY))
            results = [take(step, {"image": images()}) for _ in range(steps)]
            histories.append([[*result.losses.values(), *result.metrics.values()] for result in results])
    finally:
        ms.set_context(mode=mode)
    np.testing.assert_allclose(histories[0], histories[1][:4], rtol=2e-3, atol=1e-5)
    names = (*results[0].losses, *results[0].metrics)
    assert names == ("total", "reconstruction", "commitment", "perplexity", "usage")
    first, last = (dict(zip(names, row, strict=True)) for row in (histories[1][0], histories[1][-1]))
    assert last["reconstruction"] < 0.25 * first["reconstruction"]
    assert last["perplexity"] > 3 and last["usage"] > 0.4
    assert last["total"] == pytest.approx(last["reconstruction"] + TINY.commitment * last["commitment"], rel=1e-4)


def test_a_step_that_is_not_finite_leaves_the_codebook(graph):
    model = filled()
    step = make_step(settings(), model)
    step({"image": images()})
    bias = model.decoder.leave.bias
    bias.set_data(Tensor(np.full(bias.shape, np.nan, np.float32)))
    before = state_of(model)
    with pytest.raises(NonFiniteError, match="reconstruction"):
        take(step, {"image": images(seed=1)})
    for name, value in state_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    base = tiny_dataset(tmp_path_factory.mktemp("data"), config=settings())
    return replace(base, data=replace(base.data, batch_size=B, eval_split="train"))


def with_run(config: Config, output: Path, **train) -> Config:
    return replace(config, train=TrainConfig(output=str(output), steps=4, log_every=1, save_every=2, **train))


def test_resumed_run_equals_the_uninterrupted_one(config, tmp_path, graph):
    whole, cut = with_run(config, tmp_path / "whole", eval_every=2), with_run(config, tmp_path / "cut", eval_every=2)
    ms.set_seed(1)
    Trainer(whole).run()
    kill_after(tmp_path / "whole", 2, tmp_path / "cut")
    ms.set_seed(99)  # nothing may depend on it
    Trainer(cut, resume=True).run()
    for name in (MODEL, OPTIMIZER):
        expected, found = (read_tensors(locate(run.train.output) / name) for run in (whole, cut))
        assert expected.keys() == found.keys()
        for tensor in expected:
            np.testing.assert_array_equal(found[tensor], expected[tensor], err_msg=tensor)
    assert {"codebook.vectors", "codebook.counts", "codebook.sums", "codebook.offset"} < read_tensors(
        locate(whole.train.output) / MODEL
    ).keys()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/reconstruction", "loss/commitment", "batch/perplexity", "batch/usage"} <= lines[0].keys()
    assert {"eval/psnr", "eval/perplexity", "eval/usage"} <= set().union(*lines)
    assert {"first_batch/image", "evaluation/reconstruction"} <= shown_images(tmp_path / "whole").keys()
    assert (tmp_path / "whole" / "checkpoints" / "best").is_file()

    tuned = Trainer(with_run(config, tmp_path / "tuned", init_from=whole.train.output))
    for name, value in state_of(tuned.model).items():
        np.testing.assert_array_equal(value, read_tensors(locate(whole.train.output) / MODEL)[name], err_msg=name)


def test_evaluation_measures_and_plots(config, tmp_path, graph):
    model = build_model(config)
    model.codebook.vectors.set_data(filled().codebook.vectors)
    config = replace(config, eval=replace(config.eval, batch_size=5))
    metrics = Evaluation(Engine(config, model), (ReconstructionEvaluator,)).run("dev", tmp_path)
    loader = ImageLoader(config, "dev")
    image = np.concatenate([batch["image"][:n] for batch, n, _ in loader.evaluation(5)])
    decoded, codes = (part.asnumpy() for part in Reconstruct(model)(Tensor(image)))
    error = ((decoded.astype(float) - image) ** 2).mean((1, 2, 3))
    found = metrics["reconstruction"]
    assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-4)
    assert found["usage"] == len(np.unique(codes)) / TINY.codes and found["images"] == len(image)
    assert found["perplexity"] == pytest.approx(perplexity(np.bincount(codes.reshape(-1), minlength=TINY.codes)))
    assert (tmp_path / "figures" / "reconstruction.png").stat().st_size > 1000
    assert json.loads((tmp_path / "metrics.json").read_text())["task"] == "image_tokenizer"


@pytest.mark.parametrize(("images", "rows"), [(0, (0, 7, 13, 20)), (7, (0, 2, 4, 6))])
def test_reconstructions_are_of_images_from_all_over_the_split(config, graph, monkeypatch, images, rows):
    """Evenly apart over what is measured, across batches, and each beside its own reconstruction."""
    monkeypatch.setattr("src.evaluation.reconstruction.SHOWN", 4)
    model = build_model(config)
    model.codebook.vectors.set_data(filled().codebook.vectors)
    config = replace(config, eval=replace(config.eval, batch_size=5))
    _, shown = ReconstructionEvaluator(Engine(config, model)).measure("train", images)
    image = np.concatenate([batch["image"][:n] for batch, n, _ in ImageLoader(config, "train").evaluation(5)])
    decoded = Reconstruct(model)(Tensor(image))[0].asnumpy()
    for row, (original, reconstruction) in zip(rows, shown, strict=True):
        np.testing.assert_array_equal(original, image[row])
        assert np.abs(reconstruction.astype(int) - decoded[row]).max() <= 1  # rounded in another place of a batch


def test_figures_of_known_numbers():
    assert psnr(np.array([255.0**2, 255.0**2 / 100])) == pytest.approx(10)
    assert perplexity(np.array([3, 3, 0, 3])) == pytest.approx(3) and perplexity(np.array([9, 0])) == pytest.approx(1)


def test_the_loader_shows_each_image_once(config):
    loader = ImageLoader(config, "train")
    dataset = Dataset(config.data.path, "train")
    pictured = {r for r, record in enumerate(dataset.read(range(dataset.records))) if record.image is not None}
    images = {image for record, _, image in dataset.samples.tolist() if record in pictured}
    assert dataset.samples[loader.ids, 2].tolist() == sorted(images) and len(images) < dataset.records < len(dataset)
    batches = loader.batches()
    epoch = np.concatenate([next(batches)["sample_id"] for _ in range(loader.order.size // B)])
    batches.close()
    assert len(np.unique(epoch)) == len(epoch)
    again = loader.batches(2 * B)
    batch = next(again)
    again.close()
    np.testing.assert_array_equal(batch["sample_id"], epoch[2 * B : 3 * B])
    assert batch.keys() == {"sample_id", "image"} and batch["image"].shape == (B, 16, 16, 3)


def test_an_image_of_two_records_is_one(config, tmp_path):
    """As two people's narratives of it are stored: it is trained on and measured once."""
    with DatasetWriter(tmp_path / "data", config.model.audio, {}) as writer:
        for key, colour in (("a", 10), ("b", 20), ("again", 10)):
            writer.add("train", Record(key, png(np.full((16, 16, 3), colour, np.uint8)), (key, key), (None, None)))
    data = replace(config.data, path=str(tmp_path / "data"))
    ((batch, count, names),) = ImageLoader(replace(config, data=data), "train").evaluation(4)
    assert count == 2 and [int(image[0, 0, 0]) for image in batch["image"][:2]] == [10, 20]


def test_a_source_without_images_has_nothing_to_learn_from(config, tmp_path):
    with DatasetWriter(tmp_path / "silent", config.model.audio, {}) as writer:
        writer.add("train", Record("words", None, ("words",), ()))
    assert not Dataset(tmp_path / "silent", "train").count(IMAGE)
    with pytest.raises(DataError, match="'train' has no image"):
        ImageLoader(replace(config, data=replace(config.data, path=str(tmp_path / "silent"))), "train")


@pytest.mark.parametrize(
    ("name", "grid", "codes"), [("demo", (64, 8), 512), ("paper", (64, 8), 8192), ("base", (256, 16), 8192)]
)
def test_shipped_configurations(name, grid, codes):
    config = load_config(ROOT / "config" / "image_tokenizer" / f"{name}.yaml")
    tokenizer = config.model.image_tokenizer
    assert config.task == "image_tokenizer" and (tokenizer.size, tokenizer.side) == grid and tokenizer.codes == codes


@pytest.mark.parametrize(
    ("key", "value"),
    [("side", 5), ("codes", 1), ("ema_decay", 1.0), ("revive_below", 1.0), ("commitment", -1.0), ("heads", 3)],
)
def test_impossible_sizes_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(TINY, **{key: value})
