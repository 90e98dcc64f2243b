"""What a trained model can do, as a library::

    from src.inference import load

    model = load("opt_demo")
    vectors = model.embed_image(["a.png", "b.jpg"])

Importing it loads nothing; :func:`load` imports MindSpore. What a model can do stands in
:class:`src.inference.library.Model`, and every command of the project does it by the same functions.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.inference.library import Model

__all__ = ["load"]

BATCH_SIZE = 16  # from so many rows on the rounding of a row did not depend on their number (docs/library.md)


def load(
    path: str | Path = "opt_demo",
    settings: Sequence[str] = (),
    config_file: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    ema: bool = False,
) -> "Model":
    """A trained model, ready to answer.

    >>> from src.inference import load
    >>> model = load("pretrained/opt_demo")
    >>> model
    Model(pretrained/opt_demo, task=pretrain, 128 numbers an embedding)

    Args:
        path: run folder, checkpoint folder, or the name of a bundled checkpoint.
        settings: ``key=value`` changes of its configuration, as commands take them: ``["eval.rerank.top_k=0"]``.
        config_file: configuration in place of the checkpoint's own; the network stays the one that was trained.
        batch_size: items that a graph reads at once, filled up if there are fewer, so that an answer does not depend
            on how many items are asked about together. With 1 a single item costs least and many cost more.
        ema: take the average of its weights (train.ema_decay).

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged, or holds exported graphs.
        ConfigError: a setting is wrong, or the network is an image tokenizer, which answers nothing.
        RuntimeSetupError: the device is not usable here.
    """
    from src.inference.library import open_model

    return open_model(path, settings, config_file, batch_size, ema)
