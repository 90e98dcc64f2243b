"""Networks by name, as MindSpore Hub asks for them."""

from pathlib import Path

from src.checkpoints.files import MODEL, CheckpointError
from src.checkpoints.pretrained import init_encoders
from src.config import ConfigError, load_config
from src.config.paths import path_setting
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.opt import OPT

ROOT = Path(__file__).resolve().parent
NETWORKS = {  # the weights in pretrained/opt_demo are of the full world
    f"opt_{name}": ROOT / "config" / "model" / f"{file}.yaml"
    for name, file in (("demo", "demo_full"), ("base", "base"), ("large", "large"))
}


def create_network(name: str, *args: str, **kwargs: bool) -> OPT:
    """Builds a network; the device is MindSpore's current one.

        model = create_network("opt_demo", pretrained=True)
        model = create_network("opt_base", "model.text.vocab=vocab.txt", "model.text.max_len=40")

    Args:
        name: ``opt_demo``, ``opt_base`` or ``opt_large``.
        *args: ``key=value`` changes of the configuration.
        **kwargs: ``pretrained`` (False): load the weights in ``pretrained/<name>``.

    Raises:
        ConfigError: unknown name or setting.
        CheckpointError: ``pretrained`` without such weights.
    """
    return _create(name, args, **kwargs)


def _create(name: str, settings: tuple[str, ...], pretrained: bool = False) -> OPT:
    if name not in NETWORKS:
        raise ConfigError(f"unknown network {name!r}: {', '.join(NETWORKS)}")
    if not pretrained:
        vocab = ROOT / load_config(NETWORKS[name]).model.text.vocab  # whatever the current folder is
        config = load_config(NETWORKS[name], [path_setting("model.text.vocab", vocab), *settings])
        model = build_model(config)
        for report in init_encoders(model, config.model):
            print(report)
        return model
    folder = ROOT / "pretrained" / name
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"no weights of {name} here: {folder / MODEL} is missing; leave out pretrained=True")
    return load_model(folder, settings)[1]
