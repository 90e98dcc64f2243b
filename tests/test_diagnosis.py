"""Warnings: none in healthy runs, each in a run that is sick on purpose, once until it has passed.

``data/training_logs`` holds the logs of real runs of the demo's network, numbers rounded to four digits: healthy ones,
and ones with a mistake that their first line names. Series that are made up show the limits.
"""

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.config import Config, OptimizerConfig, TrainConfig, load_config
from src.report.diagnosis import CHECKS, Finding, Watch

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "tests" / "data" / "training_logs"
CONFIG = Config(optimizer=OptimizerConfig(warmup_steps=10, clip_norm=1.0), train=TrainConfig(steps=1000, log_every=10))


def steps(losses: Iterable[float], first: int = 10, **more: float) -> Iterator[dict[str, float]]:
    """A log line every ten steps."""
    for at, loss in enumerate(losses):
        yield {"step": first + 10 * at, "loss": loss, "lr": 1e-3, **more}


def evaluations(name: str, values: Iterable[float], first: int = 100) -> Iterator[dict[str, float]]:
    for at, value in enumerate(values):
        yield {"step": first + 100 * at, name: value}


def found(lines: Iterable[dict[str, float]], config: Config = CONFIG, watch: Watch | None = None) -> list[Finding]:
    watch = watch or Watch(config)
    return [finding for line in lines for finding in watch.add(line)]


def names(findings: list[Finding]) -> list[tuple[str, int]]:
    return [(finding.name, finding.step) for finding in findings]


def test_mindspore_is_not_loaded() -> None:
    """A report reads the lines where no network is built."""
    code = "import sys, src.report.diagnosis; sys.exit('mindspore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def logged(name: str) -> list[Finding]:
    settings, *lines = map(json.loads, (LOGS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    return found(lines, load_config(None, settings["settings"]))


HEALTHY = sorted(path.stem for path in LOGS.glob("healthy_*"))


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_warning(name: str) -> None:
    assert logged(name) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "rate_100_times",
            {"gradients_vanishing": 20, "embeddings_collapsed": 26, "objective_at_chance": 52, "loss_flat": 60},
        ),
        (
            "adamw_rate_100_times",
            {"gradients_vanishing": 22, "embeddings_collapsed": 26, "objective_at_chance": 52, "loss_flat": 60},
        ),
        ("shuffled_pairs", {"embeddings_collapsed": 26, "objective_at_chance": 52, "loss_flat": 60}),
        ("image_tokenizer_rate_100_times", {"loss_diverging": 10, "codes_unused": 26}),
    ],
)
def test_a_sick_run_is_told_early_and_once(name: str, expected: dict[str, int]) -> None:
    """By the step of the first warning of each kind; no kind comes twice."""
    findings = logged(name)
    assert dict(names(findings)) == expected and len(findings) == len(expected)


def test_a_loss_that_rises_is_told_once_and_again_after_it_fell() -> None:
    lines = steps([4, 3, 2, 2, 2, 2, 2] + [4] * 9 + [2] * 5 + [5] * 5)
    findings = found(lines)
    assert names(findings) == [("loss_diverging", 100), ("loss_diverging", 240)]
    assert findings[0].figure == "the loss is 4, 2.0 times its lowest of 2 at step 50"
    assert "optimizer.lr" in findings[0].advice


def test_noise_of_a_loss_that_is_almost_gone_is_no_divergence() -> None:
    assert found(steps([4.0, 1.0, 0.1, *[0.01] * 5, *[0.03] * 5])) == []
    assert found(steps([4.0, 3.0, 3.1, 9.0, 2.9, 3.0, 8.0, 3.1, 3.0])) == [], "single batches"
    assert found(steps([math.nan, 4.0, math.inf, 3.0, 2.9, 2.8])) == []
    assert found([{}, {"loss": 1.0}, {"step": "x"}, {"step": 1, "loss": "x", "data_wait": None}]) == [], "damaged"


def test_a_flat_loss_is_told_where_the_rate_is_high() -> None:
    falling = [8 * 0.97**at for at in range(60)]
    assert found(steps(falling)) == []
    stuck = [*falling[:10], *[falling[10]] * 40]
    findings = found(steps(stuck))
    assert [finding.name for finding in findings] == ["loss_flat"]
    # from the fifth line on the median of five is the stuck loss; patience is a fifth of the run
    assert 310 <= findings[0].step <= 340 and "has fallen by 0.0 % since step" in findings[0].figure
    late = [dict(line, lr=1e-3 if line["step"] <= 150 else 1e-4) for line in steps(stuck)]
    assert found(late) == [], "a schedule that ends"
    longer = replace(CONFIG, train=TrainConfig(steps=5000, log_every=10))
    assert found(steps(stuck), longer) == [], "a fifth of the run, if that is more than 20 lines"


@pytest.mark.parametrize(("task", "told"), [("retrieval", True), ("self_critical", False)])
def test_the_loss_of_rewards_tells_nothing(task: str, told: bool) -> None:
    denoise = replace(CONFIG.objectives.denoise_text, given=("image",))
    config = replace(CONFIG, task=task, objectives=replace(CONFIG.objectives, denoise_text=denoise))
    assert bool(found(steps([4, 2, 2, 2, 2, 2, 2, *[4] * 40]), config)) is told


def test_what_nobody_trains_may_be_at_chance() -> None:
    """Unless weights were read that know it, or the task trains it whatever the weights say."""
    names_of = ("mean_R@1", "generated_text_R@1", "cider_d", "mlm_accuracy")
    pairs = {f"{kind}/{name}": 0.1 for name in names_of for kind in ("eval", "chance")}
    lines = [{"step": step, **pairs} for step in (100, 200)]

    def told(task: str = "pretrain", init_from: str = "", **weights: float) -> str:
        objectives = replace(CONFIG.objectives, weights=replace(CONFIG.objectives.weights, **weights))
        train = replace(CONFIG.train, init_from=init_from)
        findings = found(
            lines, SimpleNamespace(**vars(CONFIG) | {"task": task, "objectives": objectives, "train": train})
        )
        return " ".join(finding.figure for finding in findings)

    assert "mean_R@1" in told() and "generated" not in told(denoise_image=0.0)
    nothing = {"contrastive": 0.0, "denoise_text": 0.0, "denoise_image": 0.0}
    assert told(**nothing).startswith("mlm_accuracy is 0.1 where chance is 0.1") and "more" not in told(**nothing)
    assert told("retrieval", "runs/before", **nothing).startswith("mean_R@1")
    assert "cider_d" in told("caption", contrastive=0.0) or "more" in told("caption", contrastive=0.0)


def test_metrics_at_chance() -> None:
    """Two evaluations, and later than the beginning; many are one warning."""
    at_chance = [
        {"step": step, "eval/a_R@1": 0.004, "chance/a_R@1": 0.002, "eval/b": 0.6, "chance/b": 0.2, "eval/c": 0.1}
        for step in (50, 90, 100, 200, 300)
    ]
    findings = found(at_chance)
    assert names(findings) == [("objective_at_chance", 200)]
    assert findings[0].figure == "a_R@1 is 0.004 where chance is 0.002"
    learned = [dict(line, **{"eval/a_R@1": 0.05}) for line in at_chance]
    assert found(learned) == []
    flicker = [dict(line, **{"eval/a_R@1": 0.004 if at % 3 else 0.02}) for at, line in enumerate(at_chance * 4)]
    assert len(found(dict(line, step=100 + 10 * at) for at, line in enumerate(flicker))) == 1
    many = {f"eval/{name}": 0.1 for name in "abcde"} | {f"chance/{name}": 0.1 for name in "abcde"}
    figure = found({"step": step, **many} for step in (200, 300))[0].figure
    assert (
        figure
        == "a is 0.1 where chance is 0.1; b is 0.1 where chance is 0.1; c is 0.1 where chance is 0.1 (and 2 more)"
    )


def test_collapsed_embeddings() -> None:
    def line(step: int, cosine: float, rank: float, items: int = 500) -> dict[str, float]:
        found = {"mean_cosine": cosine, "effective_rank": rank, "items": items}
        return {"step": step, **{f"embeddings/text_{name}": value for name, value in found.items()}}

    findings = found([line(10, 0.95, 30.0), line(20, 0.85, 30.0), line(30, 0.5, 30.0), line(40, 0.1, 1.2)])
    assert names(findings) == [("embeddings_collapsed", 10), ("embeddings_collapsed", 40)]
    assert findings[1].figure == "text embeddings have a mean cosine of 0.10 and an effective rank of 1.2 of 128"
    assert found([line(10, 0.6, 3.5, items=6)]) == [], "the rank of few items"
    assert "of 1.0 of 20" in found([line(10, 0.6, 1.0, items=21)])[0].figure


@pytest.mark.parametrize(("scale", "told"), [(100.0, True), (99.0, True), (1.0, True), (80.0, False), (14.3, False)])
def test_a_logit_scale_at_its_limit(scale: float, told: bool) -> None:
    findings = found(steps([1.0] * 4, logit_scale=scale))
    assert names(findings) == [("logit_scale_at_limit", 30)] * told
    assert all("range from 1 to 100" in finding.figure for finding in findings)


def test_unused_codes_are_counted_of_those_that_a_batch_could_use() -> None:
    tokenizer = replace(CONFIG.model.image_tokenizer, codes=8192, side=8)
    config = replace(CONFIG, task="image_tokenizer", model=replace(CONFIG.model, image_tokenizer=tokenizer))
    config = replace(config, data=replace(config.data, batch_size=16))  # 1,024 tokens
    few = found(steps([1.0] * 5, **{"batch/usage": 0.005}), config)
    assert names(few) == [("codes_unused", 40)], "not during the warm-up, and not of one batch"
    assert few[0].figure == "41 of 8192 codes are used in a batch, where 963 could be"
    assert found(steps([1.0] * 5, **{"batch/usage": 0.05}), config) == []


@pytest.mark.parametrize(("share", "told"), [(0.6, True), (0.1, False)])
def test_waiting_for_data(share: float, told: bool) -> None:
    findings = found(steps([1.0] * 4, data_wait=share))
    assert names(findings) == [("waiting_for_data", 30)] * told
    assert all(finding.figure.startswith("60 % of the time") for finding in findings)


def test_a_loss_scale_at_its_minimum_is_told_at_once() -> None:
    scales = [65536.0, 4.0, 1.0, 2.0, 1.0, 16.0, 1.0]
    findings = found({"step": 10 * at, "loss_scale": scale} for at, scale in enumerate(scales))
    assert names(findings) == [("loss_scale_at_minimum", 20), ("loss_scale_at_minimum", 60)]


def test_gradients_that_are_clipped_or_vanish() -> None:
    def lines(norms: Iterable[float]) -> Iterator[dict[str, float]]:
        return ({"step": 10 * at + 20, "grad_norm": norm} for at, norm in enumerate(norms))

    assert found(lines([12.0] * 30)) == [] and found(lines([0.5] * 12 + [0.01] * 30)) == []
    clipped = found(lines([200.0] * 12 + [1.0] * 12))
    assert names(clipped) == [("gradients_clipped", 110)]
    warming = replace(CONFIG, optimizer=replace(CONFIG.optimizer, warmup_steps=130))
    assert names(found(lines([200.0] * 20), warming)) == [("gradients_clipped", 140)], "not while the rate still rises"
    assert "200 times optimizer.clip_norm=1" in clipped[0].figure
    assert found(lines([math.inf] * 30)) == [], "steps that overflowed"
    gone = found(lines([0.5] * 12 + [0.0] * 12))
    assert names(gone) == [("gradients_vanishing", 190)]
    assert gone[0].figure == "the gradients' norm is 0 (median of 10 log lines)"


def test_overfitting_needs_a_falling_loss() -> None:
    def lines(values: Iterable[float], loss: float) -> Iterator[dict[str, float]]:
        for at, value in enumerate(values):
            yield from steps([loss**at] * 5, first=100 * at + 10)
            yield {"step": 100 * at + 50, "best_metric": value}

    falling = [0.3, 0.5, 0.6, 0.55, 0.5, 0.45, 0.44]
    findings = found(lines(falling, loss=0.8))
    assert names(findings) == [("overfitting", 550)]
    assert findings[0].figure.startswith("the held-out metric is 0.5 (mean of 3 evaluations), 0.6 at step 250, while")
    assert "overfitting" not in [finding.name for finding in found(lines(falling, loss=1.0))]
    assert found(lines([0.3, 0.5, 0.6, 0.59, 0.58, 0.6, 0.57], loss=0.8)) == []


def test_memory_does_not_grow_with_the_run() -> None:
    watch, sizes = Watch(CONFIG), []
    for number in range(2):
        for line in steps([1.0 + 0.1 * math.sin(at) for at in range(2000)], first=10 + 20000 * number, grad_norm=1.0):
            watch.add(line)
        for line in evaluations("best_metric", [0.5] * 200, first=10 + 20000 * number):
            watch.add(line | {"eval/a": 0.5, "chance/a": 0.1})
        sizes.append(len(pickle.dumps(watch)))
    assert sizes[1] - sizes[0] < 100


def test_every_warning_is_explained() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for check in CHECKS:
        assert f"`{check.name}`" in page and check.advice.endswith(".")
