"""Exported graphs: what they compute, what export.json says of them, and what is refused."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import export as command
from src import cli, runtime
from src.checkpoints.checkpoint import save_checkpoint
from src.config import Config, load_config
from src.data.schema import Field
from src.data.tokenizer import Tokenizer
from src.export import export
from src.export.graphs import Graph, without_graph
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.opt import OPT
from tests.oracles import VOCAB, randomise, tiny_model

PARTS = ("text", "image", "audio", "cross", "text_decoder")
TINY = [f"model.{part}.{size}" for part in PARTS for size in ("width=16", "layers=1", "heads=2", "ffn=32")]
TINY += ["model.text.max_len=12", "model.image.size=16", "model.audio.max_frames=40", "model.audio.mels=8"]
LIMITS = {"text_ids": (0, 203), "audio_frames": (1, 41)}


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config("config/model/demo.yaml", TINY)
    save_checkpoint(folder / "checkpoints", 1, config, build_model(config))
    return folder


@pytest.fixture(scope="module")
def model(trained: Path) -> tuple[Config, OPT]:
    return load_model(trained)


@pytest.fixture(scope="module")
def exported(model: tuple[Config, OPT], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    export.export_graphs(*model, folder, "MINDIR", 0)
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


def example(field: Field, name: str, rows: int, seed: int) -> np.ndarray:
    return export.random_input(name, field, rows, np.random.default_rng(seed), LIMITS)


class Scaled(nn.Cell):
    """A graph that compiles in no time, for what does not depend on the network: float32 [B, 8] times a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(8, np.float32)), name="weight")

    def construct(self, x):
        return x * self.weight


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Stands for all graphs of a model."""
    graph = Graph(Scaled(), {"x": Field(np.float32, (8,), "")}, {"y": ""})
    monkeypatch.setattr(export, "build_graphs", lambda *_: {"scaled": graph})
    return graph


def test_graphs_reproduce_the_model_from_files_to_logits(exported: Path, model: tuple[Config, OPT]) -> None:
    """Every graph runs on what the graphs before it gave, for 2 rows; the model computes the same in pynative mode."""
    config, opt = model
    values: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    for entry in report_of(exported)["graphs"].values():
        graph = nn.GraphCell(ms.load(str(exported / entry["file"])))
        for port in entry["inputs"]:
            field = Field(np.dtype(port["type"]).type, tuple(port["shape"][1:]), "")
            values.setdefault(port["name"], example(field, port["name"], 2, len(values)))
        results = graph(*(Tensor(values[port["name"]]) for port in entry["inputs"]))
        results = results if isinstance(results, tuple) else (results,)
        outputs |= {port["name"]: x.asnumpy() for port, x in zip(entry["outputs"], results, strict=True)}
        values |= outputs

    ms.set_context(mode=ms.PYNATIVE_MODE)
    given = {name: Tensor(value) for name, value in values.items() if name not in outputs}
    text = opt.text_encoder(given["text_ids"], given["text_mask"])
    image, image_mask = opt.encode_image((given["image"],))
    audio, audio_mask = opt.audio_encoder(given["audio"], given["audio_frames"])
    embedded_image = opt.embed_image(image, image_mask)
    embeddings = opt.embed_text(text, given["text_mask"]), embedded_image, opt.embed_audio(audio, audio_mask)
    masks = (given["text_mask"], image_mask, audio_mask)
    fused, mask = opt.cross_encoder(text, image, audio, *masks, given["presence"])
    wanted = {
        **dict(zip(("text_embedding", "image_embedding", "audio_embedding"), embeddings, strict=True)),
        "fused": fused,
        "fused_mask": mask,
        "match_logits": opt.matching_head(fused[:, 0], *embeddings, given["presence"]),
        "text_logits": opt.text_decoder(given["text_ids"], fused, mask).reshape(2, config.model.text.max_len, -1),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(outputs[name], value.asnumpy(), rtol=0, atol=1e-5, err_msg=name)
    ms.set_context(mode=ms.GRAPH_MODE)


def test_report(exported: Path) -> None:
    report = report_of(exported)
    assert list(report["graphs"]) == ["text_encoder", "image_encoder", "audio_encoder", "cross_encoder", "text_decoder"]
    assert report["without_graph"] == ["image_decoder"]
    assert 0 <= report["max_abs_diff"] <= 1e-4
    assert report["max_abs_diff"] == max(entry["max_abs_diff"] for entry in report["graphs"].values())
    for entry in report["graphs"].values():
        assert entry["max_rel_diff"] < 1e-4
        for name, digest in entry["sha256"].items():
            assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    audio = report["graphs"]["audio_encoder"]
    assert [(port["name"], port["shape"], port["type"]) for port in audio["inputs"]] == [
        ("audio", ["B", 40, 8], "uint8"),
        ("audio_frames", ["B"], "int32"),
    ]
    assert [(port["name"], port["shape"]) for port in audio["outputs"]] == [
        ("audio_embedding", ["B", 128]),
        ("audio_tokens", ["B", 10, 16]),
        ("audio_mask", ["B", 10]),
    ]
    assert report["preprocessing"]["audio"]["hop_ms"] == 20
    assert report["preprocessing"]["image"]["size"] == 16
    assert report["preprocessing"]["image"]["resize"] == "crop"


def test_folder_explains_itself(exported: Path) -> None:
    assert load_config(exported / "config.yaml").model.text.vocab == "vocab.txt"
    assert (exported / "vocab.txt").read_bytes() == Path("config/vocab/demo.txt").read_bytes()
    assert (exported / "text_encoder.mindir").stat().st_mode & 0o044 == 0o044
    assert not list(exported.parent.glob(".writing*"))


@pytest.mark.parametrize("weight", [1.0, 1.01, np.nan])
def test_a_graph_of_other_weights_is_noticed(
    model: tuple[Config, OPT], tmp_path: Path, scaled: Graph, weight: float
) -> None:
    export.export_graphs(*model, tmp_path / "out", "MINDIR", 0)
    scaled.cell.weight.set_data(Tensor(np.full(8, weight, np.float32)))
    found = export.compare(scaled, tmp_path / "out" / "scaled.mindir", "B", {})["max_abs_diff"]
    assert (found <= export.TOLERANCES["fp32"]) == (weight == 1.0)


def test_no_output_that_is_not_a_number_passes(
    model: tuple[Config, OPT], tmp_path: Path, scaled: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences = iter([0.0, np.nan])
    monkeypatch.setattr(export, "_difference", lambda *_: next(differences))
    with pytest.raises(export.ExportError, match="scaled differs from the model by nan"):
        export.export_graphs(*model, tmp_path / "out", "MINDIR", 0)


def test_graphs_are_compared_over_all_their_inputs(
    model: tuple[Config, OPT], tmp_path: Path, scaled: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token and every length of audio; a graph of any number of rows also on a single one."""
    compare, run, limits, rows = export.compare, export._run, [], []
    monkeypatch.setattr(export, "compare", lambda *given: limits.append(given[-1]) or compare(*given))
    monkeypatch.setattr(export, "_run", lambda cell, inputs: rows.append(len(inputs[0])) or run(cell, inputs))
    export.export_graphs(*model, tmp_path / "out", "MINDIR", 0)
    assert limits == [LIMITS] and sorted(rows) == [1, export.CHECKED_ROWS, export.CHECKED_ROWS]


def test_drift_leaves_the_earlier_export(
    model: tuple[Config, OPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Graph
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("{}")
    monkeypatch.setitem(export.TOLERANCES, "fp32", -1.0)
    with pytest.raises(export.ExportError, match="scaled differs from the model by"):
        export.export_graphs(*model, tmp_path / "out", "MINDIR", 2)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "export.json"]


def test_fixed_batch_replaces_an_earlier_export(
    model: tuple[Config, OPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaled: Graph
) -> None:
    """Weights above a gigabyte stand in a folder beside the graph; the limit is lowered here to see it work."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    (tmp_path / "export.json").write_text("{}")
    (tmp_path / "old.mindir").write_text("")
    entry = export.export_graphs(*model, tmp_path, "MINDIR", 2)["graphs"]["scaled"]
    assert entry["inputs"][0]["shape"] == entry["outputs"][0]["shape"] == [2, 8]
    assert entry["file"] == "scaled_graph.mindir"
    assert list(entry["sha256"]) == ["scaled_graph.mindir", "scaled_variables/data_0"]
    assert not (tmp_path / "old.mindir").exists()
    loaded = nn.GraphCell(ms.load(str(tmp_path / entry["file"])))
    x = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(loaded(Tensor(x)).asnumpy(), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "AIR"], "--format AIR needs runtime.device=Ascend, not CPU"),
        (["--format", "AIR", "runtime.device=Ascend"], "--format AIR has fixed shapes: give --batch-size"),
        (["--batch-size", "-1"], "--batch-size -1: must be positive"),
        (["--format", "WEIGHTS", "--batch-size", "2"], "--batch-size 2: --format WEIGHTS has no inputs"),
        (["--format", "WEIGHTS", "--output", "{mine}"], "holds something else than an export"),
        (["--output", "{mine}"], "holds something else than an export"),
        (["model.text.widht=3"], "did you mean model.text.width"),
        (["--checkpoint", "nowhere"], "no checkpoint in nowhere"),
    ],
)
def test_errors_of_the_command(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    arguments = [argument.format(mine=tmp_path / "mine") for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["export.py", "--checkpoint", str(trained), *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run(command.main)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_command(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, scaled: Graph
) -> None:
    monkeypatch.setattr(runtime, "setup", lambda *_: None)  # MindSpore refuses a device once it has run something
    arguments = ["--checkpoint", str(trained), "runtime.device=CPU", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    cli.run(command.main)
    assert report_of(tmp_path / "out")["batch_size"] == "B"
    said = capsys.readouterr().out
    assert "scaled.mindir: differs by at most 0.0e+00" in said
    assert "no graph has the image_decoder: infer.py reads --format WEIGHTS" in said
    monkeypatch.setattr(export, "without_graph", lambda _: [])
    cli.run(command.main)
    assert "no graph has" not in capsys.readouterr().out


def test_what_has_no_graph_is_told_by_its_name() -> None:
    assert without_graph(OPT(tiny_model(), VOCAB)) == ["image_decoder"]
    plain = replace(tiny_model(), image_codes=False)
    assert without_graph(OPT(plain, VOCAB)) == []


def test_weights_without_graphs_are_a_bundle(model: tuple[Config, OPT], tmp_path: Path) -> None:
    """They load as a checkpoint wherever the folder is, and a model card beside them survives the next export."""
    bundle = tmp_path / "bundle"
    export.export_weights(*model, bundle)
    (bundle / "README.md").write_text("card")
    export.export_weights(*model, bundle)
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "vocab.txt",
    ]
    bundle.rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")[1]
    for (name, ours), theirs in zip(loaded.parameters_and_names(), model[1].get_parameters(), strict=True):
        assert ours.dtype == ms.float32
        np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), rtol=1e-3, atol=1e-6, err_msg=name)


def test_graphs_bring_the_answers_that_they_choose_of(
    model: tuple[Config, OPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, network = model
    (tmp_path / "list.txt").write_text("红\n绿\n", encoding="utf-8")
    monkeypatch.setattr(export, "build_graphs", lambda *_: {})
    for answers, expected in (("", ""), (str(tmp_path / "list.txt"), "answers.txt")):
        made = replace(config, model=replace(config.model, answers=answers))
        export.export_graphs(made, network, tmp_path / "graphs", "MINDIR", 0)
        assert load_config(tmp_path / "graphs" / "config.yaml").model.answers == expected
        assert (tmp_path / "graphs" / "answers.txt").exists() == bool(answers)
    assert (tmp_path / "graphs" / "answers.txt").read_bytes() == (tmp_path / "list.txt").read_bytes()


def test_what_stands_before_a_graph_of_waveforms(model: tuple[Config, OPT]) -> None:
    config = model[0].model
    audio = replace(config.audio, input="wav2vec2", max_frames=25, hop_ms=20, sample_rate=8000)
    found = export.describe_preprocessing(replace(config, audio=audio), Tokenizer(config.text.vocab))["audio"]
    assert found.keys() == {"sample_rate", "samples", "layout"} and "int16, full scale 32767" in found["layout"]
    assert (found["sample_rate"], found["samples"]) == (8000, 4000)


def test_a_kill_leaves_no_wrong_manifest(
    model: tuple[Config, OPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export_weights(*model, tmp_path / "bundle")
    replace_file, put = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if put:
            raise KeyboardInterrupt
        put.append(path.name)
        return replace_file(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.export_weights(*model, tmp_path / "bundle")
    assert put and not (tmp_path / "bundle" / "manifest.json").exists()
    assert load_model(tmp_path / "bundle"), "files that are whole load without one"


def test_what_a_kill_left_is_not_in_the_next_bundle(model: tuple[Config, OPT], tmp_path: Path) -> None:
    (tmp_path / ".writing-bundle").mkdir()
    (tmp_path / ".writing-bundle" / "answers.txt").write_text("红\n", encoding="utf-8")
    export.export_weights(*model, tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "answers.txt").exists() and not (tmp_path / ".writing-bundle").exists()


def test_what_belonged_to_other_weights_goes_with_them(model: tuple[Config, OPT], tmp_path: Path) -> None:
    """Answers, measures and an image tokenizer would be read with the new weights; a user's files stay."""
    config, network = model
    folder = export.export_weights(*model, tmp_path / "bundle")
    (folder / "README.md").write_text("my model card")
    (folder / "outliers.safetensors").write_bytes(b"measured for these weights")
    export.export_weights(*model, folder)
    assert (folder / "outliers.safetensors").exists(), "the same weights once more"
    (folder / "answers.txt").write_text("红\n", encoding="utf-8")
    (folder / "reranking.yaml").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "model.safetensors").write_bytes(b"of another one")
    other = build_model(config)
    randomise(other, seed=5)
    export.export_weights(config, other, folder)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"README.md", "config.yaml", "manifest.json", "model.safetensors", "vocab.txt"}
    assert load_model(folder)


def test_graphs_and_weights_have_folders_of_their_own(model: tuple[Config, OPT], tmp_path: Path, scaled: Graph) -> None:
    """One vocabulary and one configuration in a folder fit one of them."""
    export.export_graphs(*model, tmp_path / "graphs", "MINDIR", 0)
    with pytest.raises(export.ExportError, match="graphs holds exported graphs: name another folder for --format WEI"):
        export.export_weights(*model, tmp_path / "graphs")
    export.export_weights(*model, tmp_path / "weights")
    with pytest.raises(export.ExportError, match="weights holds something else than an export"):
        export.export_graphs(*model, tmp_path / "weights", "MINDIR", 0)
    (tmp_path / "weights" / "export.json").write_text("{}")
    with pytest.raises(export.ExportError, match="weights holds exported weights: name another folder for --format MI"):
        export.export_graphs(*model, tmp_path / "weights", "MINDIR", 0)
