"""Times the generation of captions beside the text decoder of BLIP (transformers) at the same shapes.

    python -m benchmarks.decode

Both generate texts of one length from one memory per image, in the same process and by turns, so that whatever else the
machine does meets both alike; a result is the median of the rounds. Neither may end a text early. Reading the memory
is part of the time, encoding and fusing the image is not. Weights are random: the texts do not matter to
the time.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from mindspore import Tensor, nn, ops
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from src import cli
from src.config import Config, load_config
from src.data.schema import IMAGE
from src.data.tokenizer import Tokenizer
from src.generation.beam import BeamSearch, BeamSettings
from src.models.build import build_model
from src.models.opt import OPT
from src.report.tables import table
from src.runtime import setup

WARM_UP = 2  # rounds that are not counted: compilation, memory pools
CASES = ((1, 1), (1, 4), (32, 1), (32, 4))  # batch, beams


class WholeDecoder(nn.Cell):
    """The likeliest next tokens, text and memory read again as a whole: what a decoder without a cache does."""

    def __init__(self, model: OPT) -> None:
        super().__init__(auto_prefix=False)
        self.decoder, self.places = model.text_decoder, Tensor(model.cross_encoder.single_modality_positions(IMAGE))

    def construct(self, ids, memory):
        bias = ops.zeros((1, 1, 1, memory.shape[1]), memory.dtype)
        logits = self.decoder.score(ids, self.decoder.read(memory, self.places), bias)
        return logits.reshape(ids.shape[0], ids.shape[1], -1).argmax(-1)


def write_without_cache(model: OPT, whole: WholeDecoder, memory: np.ndarray) -> Callable[[], None]:
    ids = np.zeros((len(memory), model.text_len), np.int32)

    def run() -> None:
        read = Tensor(memory)
        for position in range(model.text_len - 1):
            ids[:, position + 1] = whole(Tensor(ids), read).asnumpy()[:, position]

    return run


def write_with_cache(model: OPT, tokenizer: Tokenizer, memory: np.ndarray, beams: int) -> Callable[[], None]:
    length = model.text_len - 1
    settings = BeamSettings(beams=beams, min_length=length + 1, max_length=length)  # so that no text ends
    search = BeamSearch(model, tokenizer, len(memory), settings)
    read, step = search.build(len(memory), model.cross_encoder.single_modality_positions(IMAGE))
    mask = np.ones(memory.shape[:2], np.int32)

    def run() -> None:
        read(Tensor(memory), Tensor(mask))
        search.search(len(memory), step)

    return run


def blip_decoder(config: Config, vocab_size: int) -> BlipTextLMHeadModel:
    """BLIP's decoder with the sizes of the project's."""
    ours = config.model.text_decoder
    settings = BlipTextConfig(
        vocab_size=vocab_size,
        hidden_size=ours.width,
        encoder_hidden_size=config.model.cross.width,
        intermediate_size=ours.ffn,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        max_position_embeddings=config.model.text.max_len,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        is_decoder=True,
    )
    torch.manual_seed(0)
    return BlipTextLMHeadModel(settings).eval()


def write_with_blip(
    blip: BlipTextLMHeadModel, batch: int, memory_len: int, width: int, length: int, beams: int, cached: bool
) -> Callable[[], None]:
    memory = torch.randn(batch, memory_len, width)  # generate() repeats it for every beam
    begin = torch.full((batch, 1), 2)

    def run() -> None:
        with torch.no_grad():
            made = blip.generate(
                input_ids=begin,
                encoder_hidden_states=memory,
                encoder_attention_mask=torch.ones(memory.shape[:2], dtype=torch.long),
                num_beams=beams,
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=False,
                use_cache=cached,
            )
        if made.shape != (batch, length + 1):
            raise RuntimeError(f"BLIP wrote {tuple(made.shape)} tokens for {(batch, length + 1)}")

    return run


def take_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(WARM_UP + rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


def measure(config: Config, rounds: int) -> list[list[object]]:
    """A row for each case and way: captions a second of both, and their ratio."""
    setup(config.runtime, config.seed)
    model = build_model(config).set_train(False)
    tokenizer = Tokenizer(config.model.text.vocab)
    blip = blip_decoder(config, model.vocab_size)
    length, places = model.text_len - 1, len(model.cross_encoder.single_modality_positions(IMAGE))
    whole, rows = WholeDecoder(model), []
    for batch, beams in CASES:
        memory = np.random.default_rng(0).standard_normal((batch, places, config.model.cross.width)).astype(np.float32)
        sizes = (blip, batch, places, config.model.cross.width, length, beams)
        runs = {
            "ours": write_with_cache(model, tokenizer, memory, beams),
            "BLIP": write_with_blip(*sizes, cached=True),
        }
        if beams == 1:
            runs["ours, no cache"] = write_without_cache(model, whole, memory)
            runs["BLIP, no cache"] = write_with_blip(*sizes, cached=False)
        seconds = take_turns(runs, rounds)
        for suffix in ("", ", no cache"):
            if f"ours{suffix}" in seconds:
                ours, theirs = (batch / seconds[f"{name}{suffix}"] for name in ("ours", "BLIP"))
                cells = (f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}")
                rows.append([batch, beams, "no" if suffix else "yes", *cells])
                print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", default="config/caption/demo.yaml", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=15, help="how often each way is timed (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default: 1)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes of the configuration")
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    config = load_config(args.config, args.settings)
    config = replace(config, runtime=replace(config.runtime, distributed=False))
    rows = measure(config, args.rounds)
    print("\n" + table(rows, ["batch", "beams", "cache", "captions/s", "BLIP captions/s", "ratio"]))
    decoder = config.model.text_decoder
    print(
        f"\n{config.model.text.max_len - 1} tokens a caption, width {decoder.width}, {decoder.layers} layers, "
        f"{decoder.heads} heads; {args.rounds} rounds"
    )


if __name__ == "__main__":
    cli.run(main)
