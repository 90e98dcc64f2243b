"""Answers to questions about images: one of a list, or generated."""

from collections.abc import Mapping

from mindspore import Tensor, nn, ops

from src.config import TASKS, Config, ConfigError
from src.data.answers import AnswerList
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT
from src.generation.beam import BeamSearch
from src.inference.encode import Items
from src.models.batches import fitting_size, run_batched
from src.models.opt import OPT


class _Classify(nn.Cell):
    """Tokens and mask of every modality in ``given``, in that order → class (B,) int32."""

    def __init__(self, model: OPT, given: tuple[int, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.given = model, given
        self.places = Tensor(model.cross_encoder.single_modality_positions(*given))

    def construct(self, *encoded):
        tokens, masks = encoded[0::2], encoded[1::2]
        fused, mask = self.model.cross_encoder.fuse_given(tokens, masks, self.given)
        pairs = ()
        for which in (TEXT, IMAGE, AUDIO):
            if which in self.given:
                place = self.given.index(which)
                pairs = (*pairs, (tokens[place], masks[place]))
            else:
                pairs = (*pairs, None)
        points = self.model.points(pairs, self.given)
        return ops.argmax(self.model.answer_head(fused, mask, points, self.places), -1)


class Answerer:
    """Answers questions by the head that the model was trained with; its graphs are compiled at first use.

    Args:
        model: the network.
        config: of it.
        generator: writes answers where objectives.answer.head is generate.

    Raises:
        ConfigError: the model was not trained to answer questions.
    """

    def __init__(self, model: OPT, config: Config, generator: BeamSearch) -> None:
        check_answers(config)
        self.model, self.generator, self.size = model, generator, config.eval.batch_size
        self.list = AnswerList(config.model.answers) if config.objectives.answer.head == "classify" else None
        self._graphs: dict[tuple[int, ...], dict[int, _Classify]] = {}  # by what is given, then size

    def answer(self, given: Mapping[int, Items]) -> list[str]:
        """An answer for every row.

        Args:
            given: encoded questions, and images unless the model is blind, by modality: n rows of each.
        """
        present = tuple(sorted(given))
        if self.list is None:
            encoded = {which: (given[which].tokens, given[which].mask) for which in present}
            return self.generator.decode(self.generator.generate(encoded, "answers"))
        arrays = [array for which in present for array in (given[which].tokens, given[which].mask)]
        graphs = self._graphs.setdefault(present, {})
        size = fitting_size(len(arrays[0]), self.size, graphs)
        cell = graphs.setdefault(size, _Classify(self.model, present))
        (classes,) = run_batched(cell, size, arrays, "answers")
        return [self.list.answers[place] for place in classes.tolist()]


def check_answers(config: Config) -> None:
    """Raises ConfigError for a model that was not trained to answer questions."""
    if not TASKS[config.task].answers:
        hint = "train one (config/vqa/)"
        raise ConfigError(f"task={config.task}: this model was not trained to answer questions about images: {hint}")


def check_reads(config: Config, question: int) -> None:
    """Raises ConfigError if the model answers no questions about images in this modality (TEXT or AUDIO)."""
    check_answers(config)
    given = config.objectives.answer.given
    if not any({MODALITIES[question], MODALITIES[IMAGE]} == set(choice.split("+")) for choice in given):
        raise ConfigError(
            f"this model answers from {' or '.join(given)}, not from {MODALITIES[question]} and image "
            "(objectives.answer.given)"
        )
