"""The Transformer's parts against PyTorch's, in value and gradient, by either backward and in either mode."""

from collections.abc import Callable, Iterator

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from src import runtime
from src.config import CrossEncoderConfig
from src.models import precision
from src.models.dropout import set_key
from src.models.layers import (
    Attention,
    Block,
    FeedForward,
    Gelu,
    LayerNorm,
    Linear,
    Transformer,
    causal_bias,
    padding_bias,
)
from tests.oracles import (
    affine_slots,
    assert_parity,
    attention_slots,
    block_slots,
    norm_slots,
    random,
    run_mode,
    torch_block,
    torch_padding,
)

B, L, M, D, H, FFN, DM = 2, 5, 3, 8, 2, 12, 6
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
MEMORY_MASK = np.array([[1, 0, 1], [1, 1, 0]], np.int32)


@pytest.fixture(params=["own backward, pynative", "own backward, graph", "stock operators, pynative"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each way a layer can run: the CPU's own backward in both modes, and what an accelerator runs."""
    kernels, mode = request.param.split(", ")
    monkeypatch.setattr(runtime, "is_cpu", lambda: kernels == "own backward")
    with run_mode(mode):
        yield


class PaddedAttention(nn.Cell):
    def __init__(self, memory_width: int) -> None:
        super().__init__()
        self.cell = Attention(D, H, memory_width)
        self.bias = padding_bias(Tensor(MEMORY_MASK))

    def construct(self, x, memory):
        return self.cell(x, memory, self.bias)


class PaddedSelf(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell, self.bias = cell, padding_bias(Tensor(MASK))

    def construct(self, x):
        return self.cell(x, self.bias)


class PaddedCross(nn.Cell):
    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell
        self.bias, self.memory_bias = causal_bias(L), padding_bias(Tensor(MEMORY_MASK))

    def construct(self, x, memory):
        return self.cell(x, self.bias, memory, self.memory_bias)


class Noting(nn.Cell):
    """Notes the type of what a function reads, and calls it."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function, self.types = function, []

    def construct(self, x):
        self.types.append(x.dtype)
        return self.function(x)


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_softmax_of_stock_operators_is_float32_and_the_rest_of_the_compute_type(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "is_cpu", lambda: False)
    with precision.building(kind):
        cell = Attention(D, H)
    scores, mix = Noting(cell.softmax), cell.mix
    given = []
    cell.softmax, cell.mix = scores, lambda x, y: given.append(x.dtype) or mix(x, y)
    x = Tensor(random(B, L, D))
    cell(x, x, padding_bias(Tensor(MASK)))
    assert scores.types == [ms.float32] and given == [precision.TYPES[kind]]


def test_linear(path: None) -> None:
    oracle = torch.nn.Linear(D, 7)
    assert_parity(Linear(D, 7), [random(B, L, D)], oracle, affine_slots("", oracle))


def test_linear_of_one_row_and_of_many_axes(path: None) -> None:
    oracle = torch.nn.Linear(D, 3)
    for shape in ((1, D), (2, 3, 4, D)):
        oracle.zero_grad()
        assert_parity(Linear(D, 3), [random(*shape)], oracle, affine_slots("", oracle))


def test_layer_norm(path: None) -> None:
    oracle = torch.nn.LayerNorm(D)
    rows = random(B, L, D) * 3 + 5  # a mean and a deviation that matter
    assert_parity(LayerNorm(D), [rows], oracle, norm_slots("", oracle))


def test_layer_norm_of_a_constant_row_is_its_shift(path: None) -> None:
    """No deviation: the ε keeps value and gradient finite."""
    oracle = torch.nn.LayerNorm(D)
    assert_parity(LayerNorm(D), [np.full((2, D), 3.0, np.float32)], oracle, norm_slots("", oracle), tolerance=1e-3)


def test_gelu(path: None) -> None:
    ends = np.array([-30, -8, -3, -1, 0, 1, 3, 8, 30], np.float32)
    assert_parity(Gelu(), [np.concatenate([random(20), ends])], torch.nn.functional.gelu, {})


def test_feed_forward(path: None) -> None:
    up, down = torch.nn.Linear(D, FFN), torch.nn.Linear(FFN, D)
    oracle = torch.nn.Sequential(up, torch.nn.GELU(), down)
    assert_parity(FeedForward(D, FFN), [random(B, L, D)], oracle, affine_slots("up.", up) | affine_slots("down.", down))


@pytest.mark.parametrize("memory_width", [D, DM])
def test_cross_attention(path: None, memory_width: int) -> None:
    oracle = torch.nn.MultiheadAttention(D, H, kdim=memory_width, vdim=memory_width, batch_first=True)
    hidden = torch_padding(torch.from_numpy(MEMORY_MASK))
    assert_parity(
        PaddedAttention(memory_width),
        [random(B, L, D), random(B, M, memory_width)],
        lambda x, memory: oracle(x, memory, memory, key_padding_mask=hidden)[0],
        attention_slots("cell.", oracle),
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block(path: None, norm: str) -> None:
    oracle = torch_block(D, H, FFN, norm)
    hidden = torch_padding(torch.from_numpy(MASK))
    assert_parity(
        PaddedSelf(Block(D, H, FFN, norm, 0.0)),
        [random(B, L, D)],
        lambda x: oracle(x, src_key_padding_mask=hidden),
        block_slots("cell.", oracle),
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_that_reads_a_memory(path: None, norm: str) -> None:
    oracle = torch_block(D, H, FFN, norm, DM)
    causal = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    hidden = torch_padding(torch.from_numpy(MEMORY_MASK))
    assert_parity(
        PaddedCross(Block(D, H, FFN, norm, 0.0, DM)),
        [random(B, L, D), random(B, M, DM)],
        lambda x, memory: oracle(x, memory, tgt_mask=causal, memory_key_padding_mask=hidden),
        block_slots("cell.", oracle),
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_stack_ends_with_a_norm_only_where_norms_come_first(norm: str) -> None:
    """BERT's post-norm layers end normalised; a pre-norm stack needs one more (as PyTorch's ``norm=`` argument)."""
    layer = torch_block(D, H, FFN, norm)
    final = torch.nn.LayerNorm(D) if norm == "pre" else None
    oracle = torch.nn.TransformerEncoder(layer, 2, norm=final, enable_nested_tensor=False)
    slots = {name: slot for i in range(2) for name, slot in block_slots(f"cell.blocks.{i}.", oracle.layers[i]).items()}
    if oracle.norm is not None:
        slots |= norm_slots("cell.final_norm.", oracle.norm)
    hidden = torch_padding(torch.from_numpy(MASK))
    assert_parity(
        PaddedSelf(Transformer(CrossEncoderConfig(width=D, layers=2, heads=H, ffn=FFN, norm=norm))),
        [random(B, L, D)],
        lambda x: oracle(x, src_key_padding_mask=hidden),
        slots,
        tolerance=5e-5,
    )


def test_biases() -> None:
    padding = padding_bias(Tensor(MASK)).asnumpy()
    assert padding.shape == (B, 1, 1, L) and np.array_equal(padding[:, 0, 0] == 0, MASK == 1)
    causal = causal_bias(4).asnumpy()
    assert causal.shape == (1, 1, 4, 4) and np.array_equal(causal[0, 0] == 0, np.tril(np.ones((4, 4))) == 1)
    assert np.exp(max(padding[padding < 0].max(), causal[causal < 0].max())) == 0, "what is masked weighs nothing"
    assert np.isfinite(padding.astype(np.float16)).all()


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_dropout_acts_in_training_only(mode: str) -> None:
    with run_mode(mode):
        block = Block(D, H, FFN, "pre", 0.5)
        x = Tensor(random(B, L, D))

        def output(training: bool, key: int) -> np.ndarray:
            set_key(key)
            return block.set_train(training)(x, None).asnumpy().copy()

        assert np.array_equal(output(False, 1), output(False, 2))
        assert np.array_equal(output(True, 1), output(True, 1))
        assert not np.array_equal(output(True, 1), output(True, 2))
        assert not np.array_equal(output(True, 1), output(False, 1))


class Dropped(nn.Cell):
    """In a dropout's place: drops everything."""

    def construct(self, x):
        return x * 0.0


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_output_of_every_part_of_a_layer_is_dropped(norm: str) -> None:
    """Where all of it is, self-attention, cross-attention and the feed-forward part leave their residual alone."""
    block = Block(D, H, FFN, norm, 0.5, memory_width=DM)
    for part in ("attention", "cross", "ffn"):
        setattr(block, f"{part}_dropout", Dropped())
    x = Tensor(random(B, L, D))
    expected = x
    if norm == "post":
        for part in ("attention", "cross", "ffn"):
            expected = getattr(block, f"{part}_norm")(expected)
    found = block(x, None, Tensor(random(B, M, DM)), None)
    np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), atol=1e-6)


def test_a_row_of_padding_stays_finite() -> None:
    """A sample without text: every position is masked."""
    block = PaddedSelf(Block(D, H, FFN, "pre", 0.0))
    block.bias = padding_bias(Tensor(np.zeros((B, L), np.int32)))
    gradients = ms.grad(lambda x: block(x).sum())(Tensor(random(B, L, D)))
    assert np.isfinite(gradients.asnumpy()).all()
