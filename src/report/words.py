"""A run in sentences: what was trained, on what, for how long, and whether it is better than chance."""

from src.config import IMAGE_TOKENIZER, TASKS
from src.data.schema import MODALITIES
from src.report.runs import Evaluation, Run


def number(value: float) -> str:
    """Four significant digits; whole numbers as they are."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def share(value: float) -> str:
    """A metric as the tables of eval.py have it."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def sentences(run: Run) -> list[str]:
    """The summary of a run; what is not known is left out."""
    found = [_network(run), _data(run), _duration(run), _loss(run)]
    found += [_against_chance(evaluation) for evaluation in run.evaluations]
    return [sentence for sentence in found if sentence]


def seconds_of_steps(run: Run) -> float:
    """What training took, by the logged rate: steps with the compilation of the first, without evaluating and saving.

    0 where that is not known.
    """
    size, before, total = run.settings.get("data.batch_size"), 0, 0.0
    if not isinstance(size, int):
        return 0.0
    for step, rate in run.series.get("samples_per_second", {}).items():
        if rate:
            total += (step - before) * size * ranks(run) / rate
        before = step
    return total


def ranks(run: Run) -> int:
    """How many processes trained."""
    found = run.state.get("ranks", 1)
    return found if isinstance(found, int) else 1


def _network(run: Run) -> str:
    if "task" not in run.settings:
        return ""
    counts = [evaluation.section("parameters").get("total") for evaluation in run.evaluations]
    known = [count for count in counts if isinstance(count, int)]
    size = f" of {known[0] / 1e6:.2f} million parameters" if known else ""
    losses = sorted(name.removeprefix("loss/") for name in run.series if name.startswith("loss/"))
    trained = f", trained on {len(losses)} {'loss' if len(losses) == 1 else 'losses'}" if losses else ""
    listed = f" ({', '.join(losses)})" if losses else ""
    return f"Task {run.settings['task']}: a network{size}{trained}{listed}. It started from {_start(run)}."


def _start(run: Run) -> str:
    """Names the checkpoints and encoders whose weights a run began with."""
    keys = ("train.init_from", *(f"model.{name}.init_from" for name in MODALITIES))
    return ", ".join(str(run.settings[key]) for key in keys if run.settings.get(key)) or "random weights"


def _data(run: Run) -> str:
    sources = run.settings.get("data.sources")
    if sources:
        return f"Data: {len(sources) if isinstance(sources, list) else 'several'} sources, see data.sources."
    path = run.settings.get("data.path")
    if not path:
        return ""
    entry = run.data.get("splits", {}).get(run.settings.get("data.train_split"))
    if not entry:
        return f"Data: {path}."
    corpus = (run.data.get("about") or {}).get("source")
    holds = ", ".join(f"{entry[name]:,} with {name}" for name in MODALITIES if entry[name])
    source = f" (corpus {corpus})" if corpus else ""
    return f"Data: {path}{source}, {entry['samples']:,} training samples: {holds}."


def _duration(run: Run) -> str:
    done, size = run.last_step, run.settings.get("data.batch_size")
    if not done or not isinstance(size, int):
        return ""
    planned = run.settings.get("train.steps")
    unfinished = isinstance(planned, int) and done < planned
    steps = f"{done:,} of {planned:,} steps, unfinished" if unfinished else f"{done:,} steps"
    processes = f" in {ranks(run)} processes" if ranks(run) > 1 else ""
    entry = run.data.get("splits", {}).get(run.settings.get("data.train_split"))
    epoch = entry.get(_samples(run)) if entry else None
    passes = f": {done * size * ranks(run) / epoch:.1f} passes over the data" if epoch else ""
    seconds, rates = seconds_of_steps(run), list(run.series.get("samples_per_second", {}).values())
    speed = f", about {_duration_words(seconds)} of training at {number(rates[-1])} samples a second" if seconds else ""
    where = ", ".join(str(run.settings[key]) for key in ("runtime.device", "runtime.precision") if key in run.settings)
    return f"{steps} of {size * ranks(run):,} samples{processes}{passes}{speed}{f' ({where})' if where else ''}."


def _samples(run: Run) -> str:
    """Key of dataset.json: what an epoch has, each once."""
    return "pictures" if run.config and TASKS[run.config.task].network == IMAGE_TOKENIZER else "samples"


def _duration_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _loss(run: Run) -> str:
    values = list(run.series.get("loss", {}).values())
    if len(values) < 2:
        return ""
    if values[-1] is None or values[0] is None:
        return "The loss was not finite at its first or last logged step."
    return f"The loss went from {number(values[0])} to {number(values[-1])}."


def _against_chance(evaluation: Evaluation) -> str:
    known = [row for row in evaluation.rows if row.chance is not None]
    if not known:
        return ""
    weak = [row for row in known if row.at_chance]
    judged, better = f"On the split {evaluation.label}", len(known) - len(weak)
    if not weak:
        return f"{judged}, each of the {len(known)} metrics with a known chance level is better than chance."
    told = "; ".join(
        f"{row.group + ', ' if row.group else ''}{row.name} {share(row.value)} (chance {share(row.chance)})"
        for row in weak[:6]
    )
    more = f"; and {len(weak) - 6} more" if len(weak) > 6 else ""
    return f"{judged}, {better} of {len(known)} metrics are better than chance. Not better: {told}{more}."


def title(runs: list[Run]) -> str:
    """Of the page."""
    names = ", ".join(run.name for run in runs[:4])
    return f"{names}{f' and {len(runs) - 4} more' if len(runs) > 4 else ''}"
