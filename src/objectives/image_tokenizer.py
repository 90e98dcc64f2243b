"""The objectives of the image tokenizer: reconstruction and commitment."""

from mindspore import nn, ops

from src.config import Config
from src.models.image_tokenizer import CodebookStatistics, CodebookUpdate, ImageTokenizer
from src.objectives.peers import ALONE, Peers


class TokenizerObjectives(nn.Cell):
    """|x − decoded|² + β·|encoded − stop(code)|² (van den Oord et al. 2017, eq. 3; the codebook follows moving means).

    Args:
        model: the network.
        config: model.image_tokenizer, data.batch_size and the seed.
        peers: the other ranks.

    Inputs:
        batch: dict with ``image`` (B, S, S, 3) uint8.

    Outputs:
        total, reconstruction, commitment, perplexity and share of the codes in use in this batch, each () float32;
        the codebook's statistics, which :attr:`after_update` reads.
    """

    names, metrics, fields = ("reconstruction", "commitment"), ("perplexity", "usage"), ("image",)

    def __init__(self, model: ImageTokenizer, config: Config, peers: Peers = ALONE) -> None:
        super().__init__(auto_prefix=False)
        tokenizer = config.model.image_tokenizer
        rows = config.data.batch_size * tokenizer.side**2
        self.model, self.rows, self.weight = model, float(rows), tokenizer.commitment
        self.observe = CodebookStatistics(model.codebook, rows, config.seed, peers.rank, peers.ranks)
        self.after_update = CodebookUpdate(model.codebook, tokenizer, rows)

    def trained_parts(self) -> frozenset[str]:
        """The model's parts that gradients train."""
        return frozenset({"encoder", "decoder"})

    def construct(self, batch):
        patches, decoded, encoded, vectors, codes = self.model(batch["image"])
        reconstruction = ops.square(decoded - patches).mean()
        commitment = ops.square(encoded - ops.stop_gradient(vectors)).mean()
        statistics = self.observe(ops.stop_gradient(encoded), codes)
        shares = statistics[0] / self.rows
        perplexity = ops.exp(-(shares * ops.log(shares + 1e-10)).sum())
        usage = (shares > 0).astype(shares.dtype).mean()
        total = reconstruction + self.weight * commitment
        return (total, reconstruction, commitment, perplexity, usage), statistics
