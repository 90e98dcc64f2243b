"""Self-critical training (Rennie et al. 2017): the model's own sampled captions are rewarded by their CIDEr-D.

Letters: ``B`` images, ``S`` captions sampled for each, ``T`` text tokens, ``P`` patches, ``V`` vocabulary.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config
from src.data.errors import DataError
from src.data.schema import IMAGE
from src.data.sources import Sources
from src.data.tokenizer import Tokenizer
from src.generation.cache import CachedDecoder
from src.generation.text_sampling import TextSampler, never_generated
from src.losses.means import weighted_mean
from src.metrics.captions import CiderD, words
from src.models.batches import progress
from src.models.layers import padding_bias
from src.models.opt import OPT
from src.models.text_decoder import repeat_memory
from src.objectives.peers import ALONE, Counts, Peers
from src.objectives.views import image_inputs


@dataclass(frozen=True)
class References:
    """The captions of the training split; their n-grams are weighted when they are compared, which saves 8 kB each."""

    cider: CiderD
    by_image: dict[int, list[tuple[str, ...]]]  # words by image_id; only images with a caption

    @classmethod
    def read(cls, sources: Sources, image_input: str = "patch") -> "References":
        """One pass over the split; records that cannot be read are passed over, as training replaces them.

        Args:
            sources: of training.
            image_input: model.image.input.

        Raises:
            DataError: no image has a caption.
        """
        images = dict(sources.samples[:, [0, 2]].tolist())  # image_id of every record
        groups: dict[int, list[tuple[str, ...]]] = {}
        with progress(None, "references", len(images)) as bar:
            for dataset, first in zip(sources.datasets, sources.first_records, strict=True):
                for number, record in enumerate(dataset.read_good(range(dataset.records)), int(first)):
                    bar.update()
                    if record is None:
                        continue
                    texts = [tuple(map(sys.intern, tokens)) for tokens in map(words, record.captions) if tokens]
                    if texts and record.presence(0, image_input)[IMAGE]:
                        groups.setdefault(images[number], []).extend(texts)
        if not groups:
            raise DataError("task=self_critical: no image of the training split has a caption to compare with")
        return cls(CiderD(groups.values()), groups)

    def rewards(self, texts: Iterable[str], image: int) -> list[float]:
        """CIDEr-D of each text among the captions of one image."""
        group = list(map(self.cider.weigh, self.by_image[image]))
        return [self.cider.score(self.cider.weigh(words(text)), group) for text in texts]


def fuse_images(model: OPT, inputs):
    """Fused images (B, Lm, D), and their mask (B, Lm); ``inputs`` are those that model.image_fields names."""
    tokens, mask = model.encode_image(inputs)
    return model.cross_encoder.fuse_single_modality(tokens, mask, IMAGE)


class _ReadImages(nn.Cell):
    """Fills a decoder's cache with images."""

    def __init__(self, model: OPT, cached: CachedDecoder) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.cached = model, cached

    def construct(self, *inputs):
        fused, mask = fuse_images(self.model, inputs)
        self.cached.read(fused, mask)
        return mask


class CaptionSampler:
    """Samples captions for the images of a batch; the advantage of each is its reward less the mean of the others'.

    The other samples of an image are the baseline: as unbiased as the paper's greedy caption, without decoding it.

    Args:
        model: the network that generates, shared with the one that trains it.
        config: S, the batch and the vocabulary.
        references: of the training split.
    """

    def __init__(self, model: OPT, config: Config, references: References) -> None:
        self.references, self.size, self.fields = references, config.data.batch_size, model.image_fields
        self.tokenizer = Tokenizer(config.model.text.vocab)
        places = model.cross_encoder.single_modality_positions(IMAGE)
        cached = CachedDecoder(model.text_decoder, self.size, places, config.objectives.self_critical.samples)
        self.read_images = _ReadImages(model, cached).set_train(False)
        self.sampler = TextSampler(cached, self.tokenizer)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``sampled_ids`` int32 [B, S, T], ``advantage`` and ``reward`` float32 [B, S], ``rewarded`` float32 [B]."""
        self.read_images(*[Tensor(batch[name]) for name in self.fields])
        # the batch's noise comes from (seed, epoch, sample), so that a resumed run samples the same captions
        rng = np.random.default_rng(batch["match_noise"][:, 0].view(np.uint32))
        ids = self.sampler.sample(self.size, rng.random)
        rewarded = np.array([number in self.references.by_image for number in batch["image_id"].tolist()])
        rewarded &= batch["presence"][:, IMAGE] == 1
        reward = np.zeros(ids.shape[:2], np.float32)
        for row in np.flatnonzero(rewarded):
            image = int(batch["image_id"][row])
            reward[row] = self.references.rewards(map(self.tokenizer.decode, ids[row]), image)
        samples = ids.shape[1]
        others = (reward.sum(1, keepdims=True) - reward) / (samples - 1)
        return {
            "sampled_ids": ids,
            "advantage": reward - others,
            "reward": reward,
            "rewarded": rewarded.astype(np.float32),
        }


class SelfCriticalObjectives(nn.Cell):
    """−Σ A · log p(sampled token) / Σ 1, over the tokens of the samples, their ends included.

    Args:
        model: the network.
        config: S and the batch.
        sampler: samples and rewards captions before every step.
        peers: the other ranks, over whose tokens the mean is, too.

    Inputs:
        batch: dict of the tensors that ``fields`` names.

    Outputs:
        total, self_critical and the mean reward of the samples, each () float32.
    """

    names, metrics = ("self_critical",), ("reward",)

    def __init__(self, model: OPT, config: Config, sampler: CaptionSampler, peers: Peers = ALONE) -> None:
        super().__init__(auto_prefix=False)  # the parameters keep the names that they have in the model
        self.model, self.before_step, self.counts = model, sampler, Counts(peers)
        self.fields = (*model.image_fields, "sampled_ids", "advantage", "reward", "rewarded")
        self.places = Tensor(model.cross_encoder.single_modality_positions(IMAGE))
        owner = np.repeat(np.arange(config.data.batch_size), config.objectives.self_critical.samples)
        self.owner = Tensor(owner.astype(np.int32))  # (B·S,)
        self.pad_id, self.never = sampler.tokenizer.pad_id, Tensor(never_generated(sampler.tokenizer))

    def trained_parts(self) -> frozenset[str]:
        """The model's parts that gradients train."""
        return frozenset({"image_encoder", "cross_encoder", "text_decoder"})

    def construct(self, batch):
        ids = batch["sampled_ids"].reshape(self.owner.shape[0], -1)  # (B·S, T)
        labels = ids[:, 1:]
        weights = (labels != self.pad_id).astype(ms.float32) * ops.gather(batch["rewarded"], self.owner, 0).expand_dims(
            1
        )
        logs = self.log_probabilities(image_inputs(batch, self.model.image_fields), ids)
        tokens, images = self.counts((weights, batch["rewarded"]))
        loss = weighted_mean(-logs * batch["advantage"].reshape(-1, 1), weights, tokens)
        return loss, loss, batch["reward"].mean(1).sum() / images

    def log_probabilities(self, inputs, ids):
        """(B·S, T − 1): of the tokens behind [CLS], under the distribution that they were sampled from."""
        decoder = self.model.text_decoder
        fused, mask = fuse_images(self.model, inputs)
        memory = repeat_memory(decoder.read(fused, self.places), self.owner)
        bias = ops.gather(padding_bias(mask), self.owner, 0)
        return decoder.log_probabilities(ids, memory, bias, self.never)


def build_self_critical(model: OPT, config: Config, peers: Peers = ALONE) -> SelfCriticalObjectives:
    references = References.read(Sources(config, config.data.train_split), config.model.image.input)
    return SelfCriticalObjectives(model, config, CaptionSampler(model, config, references), peers)
