"""A batch that goes through the network in parts, with the losses and gradients of the whole.

Plain accumulation would contrast, and sample hard negatives, within a part. Here the tokens of all parts are made
first, without what a backward pass needs; then the losses, part by part, send gradients into the tokens of the whole;
then each part is encoded again, and its tokens' gradients go on into the encoders (GradCache, Gao et al. 2021). Beside
the tokens of the whole batch, a part is all that takes memory. Without losses that compare samples, one pass a part is
enough.

Part i of A holds the samples i, i + A, i + 2A, … of the batch: what a level reads, the first or the last rows of the
batch, is then the first or the last rows of every part.
"""

from collections.abc import Iterable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config, ConfigError
from src.models.dropout import set_key
from src.objectives.objectives import Objectives, weighted_sum
from src.objectives.table import MODALITY, SAMPLE, TOKEN, active_objectives, level_rows
from src.objectives.views import name_tensors
from src.training.graphs import Update
from src.training.optimizer import AdamW, packed_zeros

VIEW, TOKENS = 6, 3  # tensors of a view: tokens of text, image and audio, then their masks
STATE = 4  # tensors of what the sample level samples


def part_size(config: Config) -> int:
    """How many samples a part has.

    Raises:
        ConfigError: the parts would not be alike.
    """
    parts, size, objectives = config.train.accumulate, config.data.batch_size, config.objectives
    if size % parts:
        raise ConfigError(f"train.accumulate={parts} does not divide data.batch_size={size}")
    shares = {TOKEN: "masking", SAMPLE: "matching", MODALITY: "denoise_text"}
    read = [section for level, section in shares.items() if active_objectives(objectives, level)]
    if objectives.weights.denoise_image:  # whose rows are those before denoise_text's
        read.append("denoise_image")
    for section in read:
        share = getattr(objectives, section).batch_share
        rows = level_rows(size, share)
        if level_rows(size // parts, share) * parts != rows:
            raise ConfigError(
                f"train.accumulate={parts}: objectives.{section}.batch_share={share} of data.batch_size={size} is "
                f"{rows} rows, which the parts cannot share evenly"
            )
    return size // parts


_add, _clear = ops.MultitypeFuncGraph("add"), ops.MultitypeFuncGraph("clear")


@_add.register("Tensor", "Tensor")
def _add_one(held, gradient):
    return ops.assign_add(held, gradient)


@_clear.register("Tensor")
def _clear_one(held):
    return ops.assign(held, ops.zeros_like(held))


class Accumulator(nn.Cell):
    """Adds gradients, one a trained parameter, to those that it holds, packed."""

    def __init__(self, optimizer: AdamW) -> None:
        super().__init__(auto_prefix=False)
        self.pack, self.map = optimizer.pack, ops.HyperMap()
        self.held = packed_zeros("accumulated", optimizer)

    def construct(self, gradients):
        self.map(_add, self.held, self.pack(gradients))


class Clear(nn.Cell):
    """Empties an accumulator."""

    def __init__(self, accumulator: Accumulator) -> None:
        super().__init__(auto_prefix=False)
        self.held, self.map = accumulator.held, ops.HyperMap()

    def construct(self):
        self.map(_clear, self.held)


class Encode(nn.Cell):
    """The views of a part, without gradient: 6 tensors of the clean one, then those of the masked one, if any."""

    def __init__(self, part: Objectives) -> None:
        super().__init__(auto_prefix=False)
        self.views, self.fields = part.views, part.fields

    def construct(self, *tensors):
        clean, masked = self.views(name_tensors(self.fields, tensors))
        return (*clean, *masked)


class Join(nn.Cell):
    """A tensor of each part (B/A, …) → that of the whole batch in its order (B, …)."""

    def construct(self, *parts):
        return ops.stack(parts, 1).reshape(-1, *parts[0].shape[1:])


class Plan(nn.Cell):
    """What needs the whole batch: the contrastive loss, what the levels sample, and what each loss is the mean over.

    Inputs:
        the whole batch's clean view (none if no loss compares samples), then the tensors that ``fields`` names.

    Outputs:
        the gradients of the three tokens, zeros without a contrastive loss; its value () float32; counts (n,); the 4
        tensors of what the sample level samples, if it is active.
    """

    def __init__(self, whole: Objectives, accumulator: Accumulator, update: Update, optimizer: AdamW) -> None:
        super().__init__(auto_prefix=False)
        self.whole, self.accumulator, self.update = whole, accumulator, update
        self.weight = whole.weights[0] if whole.contrasts else 0.0
        # the tokens come first, for their gradients
        self.differentiate = ops.value_and_grad(self.contrast, (0, 1, 2), optimizer.parameters_, has_aux=True)

    def construct(self, *given):
        if not self.whole.embeds:
            _, _, counts = self.whole.plan(name_tensors(self.whole.fields, given), ())
            return ops.stack(counts)
        scale = self.update.loss_scale.value()
        if not self.whole.contrasts:
            _, found = self.contrast(*given, scale)
            nothing = ()
            for tokens in given[:TOKENS]:
                nothing = (*nothing, ops.zeros_like(tokens))
            return (*nothing, *found)
        (_, found), (tokens, gradients) = self.differentiate(*given, scale)
        self.accumulator(gradients)
        return (*tokens, *found)

    def contrast(self, *given):
        batch = name_tensors(self.whole.fields, given[VIEW:-1])
        embeddings, states, counts = self.whole.plan(batch, given[:VIEW])
        loss = ops.zeros((), ms.float32)
        if self.whole.contrasts:
            loss = self.whole.contrastive(batch, embeddings, counts[0])
        sampled = ()
        for state in states:
            sampled = (*sampled, *state)
        return loss * self.weight * given[-1], (loss, ops.stack(counts), *sampled)


class Score(nn.Cell):
    """The losses of a part's rows, with gradients into the tokens of the whole batch and the part's masked ones.

    Inputs:
        the whole batch's clean view and the part's masked one, 6 tensors each (the latter may be none); the gradients
        of the three tokens and the losses (m,) so far, to which the part's are added; number () int32 of the part;
        counts (n,); the 4 tensors of what the sample level has sampled, if it is active; the part's tensors that
        ``fields`` names.

    Outputs:
        the three gradients and the losses so far; the gradients of the masked tokens, if there are such.
    """

    def __init__(
        self, part: Objectives, parts: int, accumulator: Accumulator, update: Update, optimizer: AdamW
    ) -> None:
        super().__init__(auto_prefix=False)
        self.part, self.accumulator, self.update = part, accumulator, update
        self.masked = VIEW if part.views.masked_rows else 0
        self.contrasts = int(part.contrasts)
        self.samples = tuple(level.names == ("matching",) for level in part.levels)
        self.own = Tensor(np.arange(part.views.rows, dtype=np.int32) * parts)
        self.state = STATE if any(self.samples) else 0
        places = (0, 1, 2, VIEW, VIEW + 1, VIEW + 2) if self.masked else (0, 1, 2)
        self.differentiate = ops.value_and_grad(self.score, places, optimizer.parameters_, has_aux=True)

    def construct(self, *given):
        first = VIEW + self.masked
        before, rest = given[first : first + TOKENS + 1], given[first + TOKENS + 1 :]
        (_, losses), (tokens, gradients) = self.differentiate(*given[:first], *rest, self.update.loss_scale.value())
        self.accumulator(gradients)
        after = ()
        for i in range(TOKENS):
            after = (*after, before[i] + tokens[i])
        return (*after, before[TOKENS] + losses, *tokens[TOKENS:])

    def score(self, *given):
        part, whole, masked = self.part, given[:VIEW], given[VIEW : VIEW + self.masked]
        rest = given[VIEW + self.masked :]
        own, counts = self.own + rest[0], ops.unstack(rest[1])
        batch = name_tensors(part.fields, rest[2 + self.state : -1])
        clean = ()
        for tensor in whole:
            clean = (*clean, ops.gather(tensor, own, 0))
        states = ()
        for i in range(len(self.samples)):
            state = ()
            if self.samples[i]:
                for tensor in rest[2 : 2 + STATE]:
                    state = (*state, ops.gather(tensor, own[: part.levels[i].count], 0))
            states = (*states, state)
        losses = part.level_losses(batch, (clean, masked), whole, part.embed(whole), states, counts)
        return weighted_sum(losses, part.weights[self.contrasts :]) * rest[-1], ops.stack(losses)


class Backward(nn.Cell):
    """Sends the gradients of a part's tokens on into the encoders.

    Inputs:
        number () int32 of the part; the gradients of the whole batch's three clean tokens, and of the part's masked
        ones, if there are such; the part's tensors that ``fields`` names.
    """

    def __init__(self, part: Objectives, parts: int, accumulator: Accumulator, optimizer: AdamW) -> None:
        super().__init__(auto_prefix=False)
        self.part, self.accumulator = part, accumulator
        self.own = Tensor(np.arange(part.views.rows, dtype=np.int32) * parts)
        self.tokens = 2 * TOKENS if part.views.masked_rows else TOKENS
        self.grad = ops.grad(self.product, None, optimizer.parameters_)

    def construct(self, *given):
        self.accumulator(self.grad(*given))

    def product(self, number, *given):
        clean, masked = self.part.views(name_tensors(self.part.fields, given[self.tokens :]))
        own, total = self.own + number, ops.zeros((), ms.float32)
        for i in range(TOKENS):
            total = total + (clean[i] * ops.gather(given[i], own, 0)).sum()
        if self.tokens > TOKENS:
            for i in range(TOKENS):
                total = total + (masked[i] * given[TOKENS + i]).sum()
        return total


class Direct(nn.Cell):
    """The losses of a part where none compares samples: encoders and levels in one pass.

    Inputs: the losses (n,) so far, counts (n,), the part's tensors that ``fields`` names. Outputs: the losses with the
    part's.
    """

    def __init__(self, part: Objectives, accumulator: Accumulator, update: Update, optimizer: AdamW) -> None:
        super().__init__(auto_prefix=False)
        self.part, self.accumulator, self.update = part, accumulator, update
        self.states = tuple(() for _ in part.levels)
        self.differentiate = ops.value_and_grad(self.score, None, optimizer.parameters_, has_aux=True)

    def construct(self, before, *given):
        (_, losses), gradients = self.differentiate(self.update.loss_scale.value(), *given)
        self.accumulator(gradients)
        return before + losses

    def score(self, scale, counts, *tensors):
        batch = name_tensors(self.part.fields, tensors)
        views = self.part.views(batch)
        losses = self.part.level_losses(batch, views, views[0], None, self.states, ops.unstack(counts))
        return weighted_sum(losses, self.part.weights) * scale, ops.stack(losses)


class Finish(nn.Cell):
    """The update by what has been accumulated. Inputs: each loss () of the whole batch. Outputs: as :class:`Update`."""

    def __init__(self, whole: Objectives, accumulator: Accumulator, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.whole, self.held, self.update = whole, accumulator.held, update

    def construct(self, contrastive, levels):
        losses = ops.unstack(levels) if levels.size > 0 else ()
        if self.whole.contrasts:
            losses = (contrastive, *losses)
        return self.update(ops.stack(self.whole.add_up(losses)), self.held, ())


class AccumulatedStep:
    """A step in parts; call it with a batch of numpy arrays, and it gives what :class:`Update` gives.

    Args:
        whole: the objectives of the whole batch.
        part: of one part.
        optimizer, update: as of a step in one graph.
        drops: whether the network has dropout.
    """

    def __init__(self, whole: Objectives, part: Objectives, optimizer: AdamW, update: Update, drops: bool) -> None:
        accumulator, parts = Accumulator(optimizer), whole.views.rows // part.views.rows
        self.parts, self.fields, self.drops, self.embeds = parts, whole.fields, drops, whole.embeds
        self.levels = len(whole.names) - int(whole.contrasts)
        self.clear, self.finish = Clear(accumulator), Finish(whole, accumulator, update)
        self.plan = Plan(whole, accumulator, update, optimizer)
        self.encode, self.join = Encode(part), Join()
        self.score = self.backward = self.direct = None
        if self.embeds:
            self.score = Score(part, parts, accumulator, update, optimizer) if self.levels else None
            self.backward = Backward(part, parts, accumulator, optimizer)
        else:
            self.direct = Direct(part, accumulator, update, optimizer)

    @property
    def cells(self) -> Iterable[nn.Cell]:
        found = (self.clear, self.finish, self.plan, self.encode, self.join, self.score, self.backward, self.direct)
        return [cell for cell in found if cell is not None]

    def __call__(self, batch: Mapping[str, np.ndarray], key: tuple[int, ...]) -> Tensor:
        whole = [Tensor(batch[name]) for name in self.fields]
        parts = [
            [Tensor(np.ascontiguousarray(batch[name][number :: self.parts])) for name in self.fields]
            for number in range(self.parts)
        ]
        self.clear()
        losses = ops.zeros((self.levels,), ms.float32)
        if not self.embeds:
            counts = self.plan(*whole)
            for number, tensors in enumerate(parts):
                self.drop(key, number)
                losses = self.direct(losses, counts, *tensors)
            return self.finish(ops.zeros((), ms.float32), losses)
        return self.compare(whole, parts, losses, key)

    def compare(self, whole: Sequence[Tensor], parts: Sequence[Sequence[Tensor]], losses: Tensor, key) -> Tensor:
        """The step where losses compare samples."""
        views = []
        for number, tensors in enumerate(parts):
            self.drop(key, number)
            views.append(self.encode(*tensors))
        clean = [self.join(*tensors) for tensors in zip(*[view[:VIEW] for view in views], strict=True)]
        *gradients, contrastive, counts = (found := self.plan(*clean, *whole))[: TOKENS + 2]
        sampled = found[TOKENS + 2 :]
        masked: list[Sequence[Tensor]] = [()] * self.parts
        numbers = [Tensor(number, ms.int32) for number in range(self.parts)]
        for number, tensors in enumerate(parts):
            if self.score is None:
                break
            self.drop(key, number)
            given = (*clean, *views[number][VIEW:], *gradients, losses, numbers[number], counts, *sampled, *tensors)
            *gradients, losses = (found := self.score(*given))[: TOKENS + 1]
            masked[number] = found[TOKENS + 1 :]
        for number, tensors in enumerate(parts):
            self.drop(key, number)
            self.backward(numbers[number], *gradients, *masked[number], *tensors)
        return self.finish(contrastive, losses)

    def drop(self, key: tuple[int, ...], number: int) -> None:
        """Each part has masks of its own, the same whenever it is encoded."""
        if self.drops:
            set_key(*key, number)
