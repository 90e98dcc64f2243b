"""The tasks: one row says which network a task trains and what its configuration must be.

What a task is built of and judged by stands in :mod:`src.tasks.registry`, which has a row for each of these.
"""

from dataclasses import dataclass

OPT, IMAGE_TOKENIZER = "opt", "image_tokenizer"  # the networks


@dataclass(frozen=True)
class TaskRow:
    name: str
    network: str = OPT  # key of src.models.build.NETWORKS
    objective: str = ""  # field of objectives.weights that must be positive
    given: tuple[str, ...] = ()  # what objectives.denoise_text.given may hold; empty: anything
    whole: bool = False  # whether a row must be given a choice whole: speech that is missing is not transcribed
    no_dropout: tuple[str, ...] = ()  # parts of the model whose dropout must be 0
    full_precision: bool = False  # whether runtime.precision must be fp32
    trained: bool = True  # False: it is measured alone
    layer_decay: bool = True  # whether optimizer.layer_decay may differ from 1
    accumulates: bool = True  # whether train.accumulate may differ from 1
    loss_falls: bool = True  # whether training lowers the loss; that of rewards stays about 0
    answers: bool = False  # whether it trains to answer questions about images


_ROWS = (
    TaskRow("pretrain"),
    TaskRow("retrieval"),
    TaskRow("caption", objective="denoise_text"),
    # what is sampled must be what is scored
    TaskRow(
        "self_critical",
        given=("image",),
        no_dropout=("image", "cross", "text_decoder"),
        full_precision=True,
        accumulates=False,
        loss_falls=False,
    ),
    TaskRow("speech_to_text", objective="denoise_text", given=("audio", "image+audio"), whole=True),
    TaskRow("text_to_image", objective="denoise_image"),
    TaskRow("vqa", accumulates=False, answers=True),
    TaskRow("zero_shot", trained=False),
    TaskRow("image_tokenizer", IMAGE_TOKENIZER, layer_decay=False, accumulates=False),
)
TASKS = {row.name: row for row in _ROWS}
