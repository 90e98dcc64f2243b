"""Attention as one operator, on Ascend: what it is given, beside a stand-in that does what its documentation says.

The operator itself has no kernel on a CPU.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.train.anf_ir_pb2 import ModelProto

from src.models import precision
from src.models.layers import Attention, causal_bias, padding_bias
from tests.oracles import run_mode

B, L, M, D, H = 3, 6, 5, 64, 2
SELF_MASK = np.array([[1] * 6, [1, 1, 0, 0, 0, 0], [0] * 6], np.int32)  # nothing of the last row may be attended to
MEMORY_MASK = np.array([[1] * 5, [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]], np.int32)
CASES = {
    "nothing masked": (L, None),
    "padding": (L, SELF_MASK),
    "memory": (M, MEMORY_MASK),
    "causal": (L, "causal"),
}


def documented(query, key, value, head_num, *, attn_mask=None, scalar_value=1.0, input_layout="BSH") -> Tensor:
    """softmax(mask(scale · query · keyᵀ)) · value of ops.flash_attention_score, and what it requires of its inputs."""
    assert input_layout == "BNSD" and head_num == H
    assert {x.dtype for x in (query, key, value)} <= {
        ms.float16,
        ms.bfloat16,
    } and query.dtype == key.dtype == value.dtype
    q, k, v = (x.asnumpy().astype(np.float32) for x in (query, key, value))
    assert q.shape == (B, H, L, D // H) and k.shape == v.shape == (B, H, k.shape[2], D // H)
    assert (D // H) % 16 == 0
    scores = scalar_value * q @ k.swapaxes(2, 3)
    if attn_mask is not None:
        assert attn_mask.dtype in (ms.uint8, ms.bool_)
        assert attn_mask.shape in ((B, 1, L, k.shape[2]), (L, k.shape[2]))
        assert not attn_mask.asnumpy().all(-1).any(), "what the operator gives for such a query is not documented"
        scores = np.where(attn_mask.asnumpy(), -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return Tensor((weights / weights.sum(-1, keepdims=True) @ v).astype(np.float16))


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_given_what_gives_the_same_attention(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    length, mask = CASES[case]
    bias = None if mask is None else causal_bias(L) if isinstance(mask, str) else padding_bias(Tensor(mask))
    monkeypatch.setattr(ops, "flash_attention_score", documented)
    with precision.building("fp16", device="Ascend"):
        flash = Attention(D, H)
    with precision.building("fp16"):
        plain = Attention(D, H)
    assert flash.flash is not None and plain.flash is None
    for ours, theirs in zip(flash.get_parameters(), plain.get_parameters(), strict=True):
        ours.set_data(theirs.value())
    rng = np.random.default_rng(0)
    x = Tensor(2 * rng.standard_normal((B, L, D)).astype(np.float16))
    memory = x if length == L else Tensor(rng.standard_normal((B, M, D)).astype(np.float16))
    expected = plain(x, memory, bias).asnumpy()
    found = flash(x, memory, bias).asnumpy()
    told = slice(None) if mask is None or isinstance(mask, str) else mask.any(1)
    np.testing.assert_allclose(found[told], expected[told], atol=4e-3)
    assert np.isfinite(found).all(), "also where nothing may be attended to"
    assert np.abs(expected - plain(x, memory, None).asnumpy()).max() > 0.05 or mask is None, "the mask matters"


@pytest.mark.parametrize(
    ("kind", "device", "width", "taken"),
    [
        ("fp16", "Ascend", 32, True),
        ("bf16", "Ascend", 32, True),
        ("fp32", "Ascend", 32, False),  # it takes half precision alone
        ("fp16", "GPU", 32, False),
        ("fp16", "CPU", 32, False),
        ("fp16", "Ascend", 24, False),  # heads of 12
    ],
)
def test_it_is_taken_where_it_is(kind: str, device: str, width: int, taken: bool) -> None:
    with precision.building(kind, device=device):
        assert (Attention(width, 2).flash is not None) == taken


class Shapes(nn.Cell):
    """Attention over itself with padding."""

    def __init__(self, cell: Attention) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x, mask):
        return self.cell(x, x, padding_bias(mask))


def shapes(cell: Attention) -> set[tuple[int, ...]]:
    """Of all tensors of the graph; no kernel is looked for, so that it may be another device's."""
    inputs = Tensor(np.zeros((B, L, D), np.float16)), Tensor(SELF_MASK)
    with run_mode("graph"):
        named = Shapes(cell)
        number, _ = _cell_graph_executor.compile(named, *inputs, phase="export.shapes", do_convert=False)
        graph = ModelProto()
        graph.ParseFromString(_cell_graph_executor._get_func_graph_proto(named, number, "anf_ir"))
    kinds = [node.output_type.tensor_type.shape.dim for node in graph.graph.node]
    return {tuple(dim.size for dim in kind) for kind in kinds}


def test_a_graph_holds_no_tensor_of_heads_times_queries_times_keys() -> None:
    with precision.building("fp16", device="Ascend"):
        flash = Attention(D, H)
    with precision.building("fp16"):
        plain = Attention(D, H)
    assert (B, H, L, L) in shapes(plain) and (B, H, L, L) not in shapes(flash)
