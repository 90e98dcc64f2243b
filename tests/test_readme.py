"""The READMEs: both say the same, what they link exists, and each of their commands runs.

The commands run as they stand in the README, in a folder that looks like a fresh clone. VARIANTS adds what makes each
of them small. They build on each other, in the README's order.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import pytest

from src.config import Config

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README_CN.md")
DOCUMENTS = (
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"pretrained/{name}/README.md" for name in ("opt_demo", "opt_demo_vqa")),
)
PAGES = [ROOT / name for name in DOCUMENTS] + sorted((ROOT / "docs").glob("*.md"))
MOST_LINES = 200
TIMEOUT = 120  # seconds that a small command may take


@dataclass(frozen=True)
class Variant:
    """How a documented command is made small.

    Args:
        extra: words that are added to it.
        instead: the command that runs in its place.
        error: what its last line of errors says where it must fail.
    """

    extra: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()
    error: str = ""
    environment: dict[str, str] = field(default_factory=dict)


PYNATIVE = ("runtime.mode=pynative",)  # compiles nothing
EVAL = (
    *PYNATIVE,
    *("eval.batch_size=8", "eval.retrieval.gallery_size=16", "eval.rerank.top_k=2", "eval.masked.max_items=8"),
    *("eval.caption.max_items=4", "eval.transcript.max_items=4"),
)
TRAIN = (
    *EVAL,
    *("train.steps=2", "train.log_every=1", "train.save_every=1", "optimizer.warmup_steps=1", "data.batch_size=8"),
)
GENERATE = ("eval.image_generation.max_items=2", "eval.image_generation.samples=1")
NO_DEVICE = Variant(error="runtime.device=Ascend is not usable here")  # a machine with an Ascend would train

PIP = (sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps")  # all is installed already

# beginning of a documented command → how it is made small; the longest one that fits counts
VARIANTS = {
    "pip install": Variant(instead=(*PIP, "-r", "requirements.txt")),
    # their stages and checks: tests/test_demo_stages.py, tests/test_scripts.py
    "bash scripts/run_demo.sh": Variant(("--help",)),
    "bash scripts/run_tests.sh": Variant(("--help",)),
    "bash scripts/run_web.sh": Variant(("--help",)),  # tests/test_web.py
    "python infer.py": Variant(PYNATIVE),
    "python infer.py --generate": Variant((*PYNATIVE, "--samples", "2")),
    "python tools/prepare_data.py demo": Variant(("--scenes", "48", "--dev", "16", "--test", "16")),
    "python tools/prepare_data.py manifest": Variant(),
    "python tools/check_data.py": Variant(),
    "python tools/build_vocab.py": Variant(),
    "python tools/make_image_codes.py": Variant(),
    "python tools/tune_reranking.py": Variant(EVAL),
    "python tools/linear_probe.py": Variant((*PYNATIVE, "--items", "16", "--against", "raw")),
    "python train.py": Variant(TRAIN),
    "python train.py --config config/pretrain/demo.yaml": Variant((*TRAIN, *GENERATE)),
    "python train.py --config config/pretrain/demo.yaml --resume": Variant((*TRAIN, *GENERATE, "train.steps=3")),
    "python train.py --config config/text_to_image/demo.yaml": Variant((*TRAIN, *GENERATE)),
    "python eval.py": Variant(EVAL),
    "python eval.py --checkpoint runs/demo/pretrain": Variant((*EVAL, *GENERATE)),
    "python export.py": Variant(),
    "bash scripts/run_standalone_ascend.sh": NO_DEVICE,
    "bash scripts/run_standalone_ascend_train_retrieval.sh": NO_DEVICE,
    "bash scripts/run_standalone_ascend_inf_retrieval.sh": NO_DEVICE,
    "bash scripts/train_caption.sh": NO_DEVICE,
    "bash scripts/test_caption.sh": NO_DEVICE,
    "bash scripts/train_vqa.sh": NO_DEVICE,
    "bash scripts/test_vqa.sh": NO_DEVICE,
    "bash scripts/run_distributed_ascend.sh": Variant(error=NO_DEVICE.error, environment={"RANK_SIZE": "1"}),
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """The commands of the page's bash blocks in their order, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(name), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [shlex.join(command) for command in words if command]


def tables(name: str) -> list[list[list[str]]]:
    """The page's tables: rows of cells, without the line below the header."""
    found = re.findall(r"(?:^\|.*\|\n)+", text_of(name), re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[row for row in table if not set("".join(row)) <= set("-: ")] for table in rows]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """Targets of links, images and pictures, in their order."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", without_code(text))
    return [linked or shown for linked, shown in found]


def anchors(text: str) -> set[str]:
    """What GitHub calls the page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def variant_of(command: str) -> Variant | None:
    plain = " ".join(shlex.split(command))
    known = [start for start in VARIANTS if plain == start or plain.startswith(start + " ")]
    return VARIANTS[max(known, key=len)] if known else None


@pytest.mark.parametrize("name", READMES)
def test_length(name: str):
    assert len(text_of(name).splitlines()) <= MOST_LINES


def test_the_languages_show_the_same_commands():
    assert commands(READMES[0]) == commands(READMES[1])


def test_the_languages_show_the_same_tables():
    english, chinese = map(tables, READMES)
    assert [[len(row) for row in table] for table in english] == [[len(row) for row in table] for table in chinese]
    for rows in zip(sum(english, []), sum(chinese, []), strict=True):
        for cells in zip(*rows, strict=True):
            values = [re.findall(r"`[^`]+`|(?<![\w`])\d+(?:[.,]\d+)*(?:e-?\d+)?", cell) for cell in cells]
            assert values[0] == values[1], cells


def test_the_languages_have_the_same_sections_and_links():
    levels = [re.findall(r"^#+(?= )", text_of(name), re.MULTILINE) for name in READMES]
    assert levels[0] == levels[1]
    # sections have other names, and each page links the other
    targets = [[link for link in links(text_of(name)) if link[0] != "#" and link not in READMES] for name in READMES]
    assert targets[0] == targets[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{target}: no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path):
    rooms = "src|tools|config|scripts|tests|benchmarks|docs|assets"
    named = re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    missing = [path for path in named if "NAME" not in path and not (ROOT / path).exists()]
    assert not missing


def config_keys(kind: type = Config, prefix: str = "") -> set[str]:
    """Every dotted key of the configuration, sections included."""
    found = set()
    for name, inner in typing.get_type_hints(kind).items():
        found |= {prefix + name} | (config_keys(inner, f"{prefix}{name}.") if is_dataclass(inner) else set())
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.stem)
def test_settings_that_a_page_names_are_there(page: Path):
    sections = "|".join(section.name for section in fields(Config) if is_dataclass(section.type))
    named = re.findall(rf"[`\s']((?:{sections})\.[\w.]*\w)[`=:]", page.read_text(encoding="utf-8"))
    files = (".py", ".md", ".json", ".npy", ".safetensors")
    assert {key for key in named if not key.endswith(files)} <= config_keys()


@pytest.mark.parametrize("command", commands(READMES[0]), ids=str)
def test_command_is_known(command: str):
    assert variant_of(command), "say in VARIANTS how a test runs it with little data"


def test_every_variant_is_of_a_command():
    used = [variant_of(command) for command in commands(READMES[0])]
    unused = [start for start, variant in VARIANTS.items() if not any(variant is known for known in used)]
    assert not unused


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a fresh clone, with the user's files that the README names."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "data", "vocab.txt") and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    (folder / "FOLDER").symlink_to(ROOT / "assets" / "gallery")
    splits = ["train"] * 8 + ["dev", "test"] * 2
    rows = [
        {"id": f"a{n}", "image": f"{n:02}.png", "captions": ["一只猫"], "split": split}
        for n, split in enumerate(splits, 1)
    ]
    rows[0]["audio"] = ["speech.wav"]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize("command", commands(READMES[0]), ids=str)
def test_command_runs(clone: Path, command: str):
    variant = variant_of(command)
    assert variant, "unknown command"
    words = list(variant.instead) or [*shlex.split(command), *variant.extra]
    if words[0] == "python":
        words[0] = sys.executable
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variant.environment}
    environment.pop("DEVICE_TARGET", None)
    code, output = run(words, clone, environment)
    if not variant.error:
        assert code == 0, output[-3000:]
        return
    assert code != 0, "it ran: is there an Ascend here?"
    assert variant.error in output and "Traceback" not in output, output[-3000:]


def run(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of a command; one that hangs is stopped with everything that it started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"took more than {TIMEOUT} s:\n{process.communicate()[0][-3000:]}")
    return process.returncode, output
