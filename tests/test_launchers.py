"""The launchers, with a Python that only writes down what it was asked to run."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from src.config import load_config

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = {
    "run_standalone_ascend.sh": "pretrain",
    "run_standalone_ascend_train_retrieval.sh": "retrieval",
    "train_caption.sh": "caption",
    "train_vqa.sh": "vqa",
}
EVALUATORS = {
    "run_standalone_ascend_inf_retrieval.sh": "retrieval",
    "test_caption.sh": "caption",
    "test_vqa.sh": "vqa",
}
DISTRIBUTED = "run_distributed_ascend.sh"
LAUNCHERS = [*TRAINERS, *EVALUATORS, DISTRIBUTED]

# Small questions (-c) and the supervisor of ranks go to a real Python; everything else is recorded, and ends with the
# code in EXIT.
RECORDER = """#!REAL_PYTHON
import os, sys
if sys.argv[1:2] == ["-c"] or sys.argv[1].endswith("/launch_ranks.py"):
    os.execv("REAL_PYTHON", ["REAL_PYTHON", *sys.argv[1:]])
NOTE
"""
# The module that "python -m mindspore.parallel.cluster.run" finds: msrun.
MSRUN = "mindspore/parallel/cluster/run.py"
NOTE = """
import json, os, sys
shown = ("RANK_TABLE_FILE", "PATH", "ASCEND_RT_VISIBLE_DEVICES", "CUDA_HOME")
environment = {key: os.environ.get(key) for key in shown}
with open("CALLS", "a", encoding="utf-8") as file:
    print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": environment}), file=file)
print("the run's output")
sys.exit(int(os.environ.get("EXIT", "0")))
"""


class House:
    """A copy of the repository's scripts with configurations of its own, and a recording ``python`` first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a house"  # the space must not matter
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.train = str(self.root / "train.py")
        self._calls = folder / "calls.jsonl"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "src").mkdir()
        for name in ("__init__.py", "errors.py", "cli.py"):
            shutil.copy(ROOT / "src" / name, self.root / "src")
        for name in ("config", "launch"):
            shutil.copytree(ROOT / "src" / name, self.root / "src" / name)
        (self.root / "tools").mkdir()
        shutil.copy(ROOT / "tools" / "launch_ranks.py", self.root / "tools")
        for task in ("pretrain", "retrieval", "caption", "vqa"):
            config = self.root / "config" / task / "demo.yaml"
            config.parent.mkdir(parents=True)
            config.write_text(f"train: {{output: runs/demo/{task}}}\n")
            if task in ("retrieval", "caption"):
                shutil.copy(config, config.with_name("demo_full.yaml"))
        self.python = folder / "bin" / "python"
        self.python.parent.mkdir()
        note = NOTE.replace("CALLS", str(self._calls))
        self.python.write_text(RECORDER.replace("NOTE", note).replace("REAL_PYTHON", sys.executable))
        msrun = folder / "stand-in" / MSRUN
        msrun.parent.mkdir(parents=True)
        msrun.write_text(note)
        (folder / "stand-in" / "mindspore" / "__init__.py").touch()
        self.cuda = folder / "cuda"
        (self.cuda / "lib64").mkdir(parents=True)
        (self.cuda / "lib64" / "libcublas.so.11").touch()
        self.environment = {"PYTHONPATH": str(folder / "stand-in"), "CUDA_HOME": str(self.cuda)}
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs the script from another folder, for a CPU unless the environment says otherwise."""
        kept = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "TMPDIR")}
        path = f"{self.python.parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(self.root / "scripts" / script), *arguments],
            cwd=self.elsewhere,
            env={**kept, **self.environment, "PATH": path, "DEVICE_TARGET": "CPU", **environment},
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    def config(self, task: str) -> str:
        return str(self.root / "config" / task / "demo.yaml")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def refused(result: subprocess.CompletedProcess, house: House, *words: str, calls: int = 0) -> None:
    """The script ended with one line that holds the words, and started nothing after the calls of before."""
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert len(house.calls()) == calls


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_names_usage_arguments_and_environment(house: House, script: str):
    result = house.run(script, "--help")
    assert result.returncode == 0
    for word in (f"bash scripts/{script}", "DEVICE_TARGET", "PYTHON", "key=value"):
        assert word in result.stdout
    assert "set -e" not in result.stdout
    assert house.calls() == []


@pytest.mark.parametrize(("script", "task"), TRAINERS.items())
def test_training_without_arguments(house: House, script: str, task: str):
    result = house.run(script)
    assert result.returncode == 0, result.stderr
    (call,) = house.calls()
    assert call["arguments"] == [house.train, "--config", house.config(task), "runtime.device=CPU"]
    assert call["folder"] == str(house.elsewhere)
    (log,) = (house.elsewhere / "runs" / "logs").glob(f"{script[:-3]}-*.log")
    assert log.read_text() == "the run's output\n"


def test_training_with_all_arguments(house: House):
    (house.elsewhere / "my.yaml").touch()
    (house.elsewhere / "weights").mkdir()
    house.run("train_caption.sh", "my.yaml", "weights", "train.steps=7", "--resume", "train.output=two words")
    (call,) = house.calls()
    assert call["arguments"] == [
        *(house.train, "--config", "my.yaml", "--resume", "runtime.device=CPU", "train.init_from=weights"),
        *("train.steps=7", "train.output=two words"),
    ]


def test_the_best_checkpoint_of_a_run_is_a_place(house: House):
    refused(house.run("train_caption.sh", "-", "run@best"), house, "'run@best' does not exist")
    (house.elsewhere / "run").mkdir()
    house.run("train_caption.sh", "-", "run@best")
    assert "train.init_from=run@best" in house.calls()[0]["arguments"]


def test_a_run_that_stopped_says_how_it_goes_on(house: House):
    house.python.write_text("#!/bin/sh\nexit 75\n")
    result = house.run("train_caption.sh")
    assert result.returncode == 75 and "--resume goes on" in result.stderr and "failed" not in result.stderr


def test_ascend_is_the_default_device(house: House):
    house.run("train_caption.sh", DEVICE_TARGET="")
    assert "runtime.device=Ascend" in house.calls()[0]["arguments"]


def test_a_relative_path_starts_from_the_current_folder(house: House):
    refused(house.run("train_caption.sh", "config/pretrain/demo.yaml"), house, "does not exist")
    result = house.run("train_caption.sh", "~/my.yaml", HOME=str(house.elsewhere))
    assert result.returncode == 2 and f"'{house.elsewhere}/my.yaml' does not exist" in result.stderr


@pytest.mark.parametrize(("script", "task"), EVALUATORS.items())
def test_evaluation_takes_the_bundled_checkpoint_until_a_run_is_there(house: House, script: str, task: str):
    result = house.run(script)
    bundled = str(house.root / "pretrained" / ("opt_demo_vqa" if task == "vqa" else "opt_demo"))
    refused(house.run(script, house.config(task)), house, "is not trained", f"(the bundled one is {bundled})", calls=1)
    assert f"CHECKPOINT is {bundled}" in result.stdout
    (house.elsewhere / "runs" / "demo" / task / "checkpoints").mkdir(parents=True)
    house.run(script)
    files = [Path(call["arguments"][2]).name for call in house.calls()]
    assert files == ["demo.yaml" if task == "vqa" else "demo_full.yaml", "demo.yaml"]
    checkpoints = [call["arguments"][3:5] for call in house.calls()]
    assert checkpoints == [["--checkpoint", bundled], ["--checkpoint", f"runs/demo/{task}"]]


def test_a_configuration_that_is_not_trained_is_not_measured(house: House):
    (house.elsewhere / "mine.yaml").write_text("train: {output: runs/mine}\n")
    refused(house.run("test_caption.sh", "mine.yaml"), house, "CONFIG 'mine.yaml' is not trained", "'runs/mine'")
    (house.elsewhere / "runs" / "mine" / "checkpoints").mkdir(parents=True)
    assert house.run("test_caption.sh", "mine.yaml").returncode == 0
    assert house.calls()[0]["arguments"][2:5] == ["mine.yaml", "--checkpoint", "runs/mine"]


@pytest.mark.parametrize("name", ["opt_demo", "pretrained/opt_demo"])
def test_a_bundled_checkpoint_is_named_as_in_every_command(house: House, name: str):
    """From any folder; a file of that name that is there goes first, and a name that is none is refused."""
    (house.root / "pretrained" / "opt_demo").mkdir(parents=True)
    assert house.run("test_caption.sh", "-", name).returncode == 0
    assert house.run("train_caption.sh", "-", name).returncode == 0
    evaluation, training = (call["arguments"] for call in house.calls())
    assert evaluation[3:5] == ["--checkpoint", name] and f"train.init_from={name}" in training
    refused(house.run("train_caption.sh", "-", f"{name}s"), house, "PRETRAINED_MODEL", "does not exist", calls=2)


@pytest.mark.parametrize("name", ["runs/lr=0.1", "lr=0.1", "lr=0.1@best", "./lr=0.1"])
def test_a_path_may_hold_an_equals_sign(house: House, name: str):
    (house.elsewhere / name.removesuffix("@best")).mkdir(parents=True)
    assert house.run("test_caption.sh", "-", name, "train.output=lr=0.1").returncode == 0
    assert house.run("train_caption.sh", "-", name, "optimizer.lr=0.1").returncode == 0
    evaluation, training = (call["arguments"] for call in house.calls())
    assert evaluation[3:] == ["--checkpoint", name, "runtime.device=CPU", "train.output=lr=0.1"]
    assert training[3:] == ["runtime.device=CPU", f"train.init_from={name}", "optimizer.lr=0.1"]


@pytest.mark.parametrize("name", ["runs/my #2", "12", "on", "[x]", "a: b", "it's", "@x/y", "-/x", ".5", "运行/一"])
def test_a_path_is_read_as_it_is_called(house: House, name: str):
    """YAML would read a comment, a number or a list in it."""
    (house.elsewhere / name).mkdir(parents=True)
    assert house.run("train_caption.sh", "-", name).returncode == 0
    setting = house.calls()[0]["arguments"][4]
    assert load_config(None, [setting]).train.init_from == name


def test_the_split_is_no_configuration(house: House):
    assert house.run("test_caption.sh", "--split", "dev").returncode == 0
    assert house.calls()[0]["arguments"][5:7] == ["--split", "dev"]
    refused(house.run("test_caption.sh", "--split"), house, "--split needs a value", calls=1)


def test_a_path_with_an_equals_sign_that_is_not_there(house: House):
    refused(house.run("train_caption.sh", "-", "runs/lr=0.1"), house, "'runs/lr=0.1' does not exist")
    assert house.run("train_caption.sh", "optimizer.lr=0.1", "data.path=/data/a=b").returncode == 0
    assert house.calls()[0]["arguments"][3:] == ["runtime.device=CPU", "optimizer.lr=0.1", "data.path=/data/a=b"]


def test_questions_are_measured_on_the_run_that_is_there(house: House):
    (house.elsewhere / "runs" / "demo" / "vqa" / "checkpoints").mkdir(parents=True)
    assert house.run("test_vqa.sh", "eval.batch_size=5").returncode == 0
    assert house.calls()[0]["arguments"][1:] == [
        *("--config", house.config("vqa"), "--checkpoint", "runs/demo/vqa", "runtime.device=CPU", "eval.batch_size=5")
    ]


@pytest.mark.parametrize("output", [["--output", "out"], ["--output=out"]])
def test_evaluation_with_all_arguments(house: House, output: list[str]):
    (house.elsewhere / "weights").mkdir()
    house.run("test_caption.sh", "-", *output, "weights", "eval.batch_size=5")
    (call,) = house.calls()
    assert call["arguments"] == [
        *(str(house.root / "eval.py"), "--config", house.config("caption"), "--checkpoint", "weights"),
        *(*output, "runtime.device=CPU", "eval.batch_size=5"),
    ]


def test_evaluation_reports_a_wrong_setting_in_one_line(house: House):
    refused(house.run("test_caption.sh", "train.step=5"), house, "train.step")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_wrong_arguments_are_refused(house: House, script: str):
    existing = [] if script == DISTRIBUTED else [house.config("pretrain")]
    refused(house.run(script, *existing, "no/such/place"), house, "'no/such/place' does not exist")
    refused(house.run(script, "-", "-", "third"), house, "one argument too many: 'third'")
    refused(house.run(script, DEVICE_TARGET="TPU"), house, "DEVICE_TARGET is 'TPU'", "CPU, GPU or Ascend")
    refused(house.run(script, PYTHON="/no/python"), house, "no Python at '/no/python'")


def test_output_needs_a_folder(house: House):
    refused(house.run("test_caption.sh", "--output"), house, "--output needs a value")


@pytest.mark.parametrize("script", ["run_standalone_ascend.sh", "test_caption.sh", DISTRIBUTED])
def test_a_failure_names_the_log_and_keeps_the_exit_code(house: House, script: str):
    result = house.run(script, EXIT="37")
    assert result.returncode == 37
    assert "the run's output" in result.stdout
    (log,) = (house.elsewhere / "runs" / "logs").glob("*.log")
    assert str(log) in result.stderr and "exit code 37" in result.stderr


def test_python_of_the_environment_of_the_repository_comes_first(house: House):
    own = house.root / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(house.python)
    assert str(own).replace(" ", "\\ ") in house.run("train_caption.sh").stdout
    relative = os.path.relpath(house.python, house.elsewhere)
    assert f"+ {house.elsewhere}/{relative} " in house.run("train_caption.sh", PYTHON=relative).stdout


def msrun(house: House, *arguments: str, **environment: str) -> dict:
    result = house.run(DISTRIBUTED, *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return house.calls()[-1]


def test_distributed_training_starts_msrun(house: House):
    (house.elsewhere / "weights").mkdir()
    call = msrun(house, "-", "weights", "train.steps=7", "--resume", RANK_TABLE_FILE="/of/another/job")
    launcher, script = call["arguments"][: call["arguments"].index(house.train)], call["arguments"][-8:]
    assert {"--worker_num=2", "--local_worker_num=2", "--master_addr=127.0.0.1", "--join=True"} < set(launcher)
    assert not any("rank_table" in option or "node_rank" in option for option in launcher)
    assert script == [
        *(house.train, "--config", house.config("pretrain"), "--resume", "runtime.device=CPU"),
        *("runtime.distributed=true", "train.init_from=weights", "train.steps=7"),
    ]
    assert call["environment"]["RANK_TABLE_FILE"] is None


def test_ranks_get_the_chosen_python(house: House):
    """msrun starts "python": the first one on PATH must run the one that was chosen, and be on PATH no longer."""
    chosen = house.python.with_name("chosen python")
    chosen.symlink_to(sys.executable)
    path = msrun(house, PYTHON=str(chosen))["environment"]["PATH"]
    stand_in = shutil.which("python", path=path)
    question = "import os, sys; print(sys.executable, os.environ['PATH'], sys.argv[1:])"
    done = subprocess.run([stand_in, "-c", question, "two words"], env={"PATH": path}, capture_output=True, text=True)
    assert done.stdout.strip() == f"{chosen} {path.partition(':')[2]} ['two words']", done.stderr


@pytest.mark.parametrize("name", ["RANK_SIZE", "WORKER_NUM"])
def test_number_of_ranks(house: House, name: str):
    assert "--worker_num=3" in msrun(house, **{name: "3"})["arguments"]
    assert "--worker_num=8" in msrun(house, DEVICE_TARGET="GPU")["arguments"]


def test_wrong_numbers_of_the_distributed_run_are_refused(house: House):
    refused(house.run(DISTRIBUTED, RANK_SIZE="two"), house, "RANK_SIZE is 'two'")
    refused(house.run(DISTRIBUTED, RANK_SIZE="0"), house, "RANK_SIZE is '0'")
    refused(house.run(DISTRIBUTED, NNODES="0"), house, "NNODES is '0'")
    refused(house.run(DISTRIBUTED, NODE_RANK="first"), house, "NODE_RANK is 'first'")
    for port in ("80", "70000", "x"):
        refused(house.run(DISTRIBUTED, MASTER_PORT=port), house, f"MASTER_PORT is '{port}'")


def test_a_taken_port_is_refused_or_passed_over(house: House):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused(house.run(DISTRIBUTED, MASTER_PORT=port), house, f"MASTER_PORT {port} is taken")
    assert f"--master_port={port}" in msrun(house, MASTER_PORT=port)["arguments"]


def test_launches_of_one_second_have_a_port_and_a_log_each(house: House):
    calls = [msrun(house)["arguments"] for _ in range(4)]
    for name in ("--master_port=", "--log_dir="):
        found = {option for arguments in calls for option in arguments if option.startswith(name)}
        assert len(found) == 4, found


# Says that it runs, then waits; it ends a second after INT or TERM, and writes down which one it was.
WAITER = """#!REAL_PYTHON
import signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    print(signal.Signals(number).name, flush=True)
    sys.exit(5)
for kind in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(kind) is signal.SIG_IGN:
        sys.exit("deaf")
    signal.signal(kind, stop)
if sys.argv[1:2] == ["-c"]:
    sys.exit()
print("started", flush=True)
time.sleep(60)
"""


def start(house: House, script: str) -> subprocess.Popen:
    path = f"{house.python.parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(house.root / "scripts" / script)],
        cwd=house.elsewhere,
        env={**os.environ, "PATH": path, "DEVICE_TARGET": "CPU"},
        # tests that run in the background were started deaf to it, and their children with them
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "sent", "arrives"),
    [
        ("run_standalone_ascend.sh", signal.SIGTERM, "SIGTERM"),
        ("run_standalone_ascend.sh", signal.SIGINT, "SIGINT"),
        (DISTRIBUTED, signal.SIGTERM, "SIGTERM"),
    ],
)
def test_the_command_ends_with_its_launcher(house: House, script: str, sent: signal.Signals, arrives: str):
    house.python.write_text(WAITER.replace("REAL_PYTHON", sys.executable))
    launcher = start(house, script)
    assert any(line == "started\n" for line in launcher.stdout)
    launcher.send_signal(sent)
    output, errors = launcher.communicate(timeout=20)
    assert output == f"{arrives}\n" and launcher.returncode == 5 and "exit code 5" in errors
    (log,) = (house.elsewhere / "runs" / "logs").glob("*.log")
    assert log.read_text() == f"started\n{arrives}\n"


def test_a_second_signal_kills(house: House):
    house.python.write_text(
        f"#!{sys.executable}\nimport signal, time\n"
        "for kind in (signal.SIGINT, signal.SIGTERM): signal.signal(kind, lambda *_: print('no', flush=True))\n"
        "print('started', flush=True)\nwhile True: time.sleep(60)\n"
    )
    launcher = start(house, "run_standalone_ascend.sh")
    assert any(line == "started\n" for line in launcher.stdout)
    launcher.send_signal(signal.SIGINT)
    assert launcher.stdout.readline() == "no\n"
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGKILL


def rank_table(house: House, *addresses: str, devices: tuple[int, ...] = (0, 1)) -> str:
    """A table of format 1.0 with two ranks on each server."""
    servers = [
        {
            "server_id": address,
            "device": [
                {
                    "device_id": str(device),
                    "device_ip": f"192.168.{server}.{device}",
                    "rank_id": str(2 * server + place),
                }
                for place, device in enumerate(devices)
            ],
        }
        for server, address in enumerate(addresses)
    ]
    table = {"version": "1.0", "status": "completed", "server_count": str(len(servers)), "server_list": servers}
    (house.elsewhere / "hccl.json").write_text(json.dumps(table))
    return "hccl.json"


def options_of(call: dict) -> dict[str, str]:
    """The options of msrun."""
    words = [word[2:].split("=", 1) for word in call["arguments"] if word.startswith("--") and "=" in word]
    return dict(words)


def test_rank_table(house: House):
    call = msrun(house, rank_table(house, "192.0.2.7"), DEVICE_TARGET="Ascend")
    options = options_of(call)
    assert options["rank_table_file"] == "hccl.json" and options["worker_num"] == options["local_worker_num"] == "2"
    assert call["environment"]["ASCEND_RT_VISIBLE_DEVICES"] is None
    call = msrun(house, rank_table(house, "192.0.2.7", devices=(5, 4)), DEVICE_TARGET="Ascend", RANK_SIZE="2")
    assert call["environment"]["ASCEND_RT_VISIBLE_DEVICES"] == "5,4"


def test_a_rank_table_of_several_servers(house: House):
    """Number of ranks, this machine's number and the place to meet follow from the table."""
    options = options_of(msrun(house, rank_table(house, "192.0.2.7", "127.0.0.1"), DEVICE_TARGET="Ascend"))
    expected = {"worker_num": "4", "local_worker_num": "2", "node_rank": "1", "master_addr": "192.0.2.7"}
    assert options.items() >= expected.items() and options["master_port"] == "8118"
    options = options_of(msrun(house, "hccl.json", DEVICE_TARGET="Ascend", NODE_RANK="1", MASTER_PORT="9000"))
    assert options.items() >= expected.items() and options["master_port"] == "9000"
    rank_table(house, "192.0.2.6", "192.0.2.7")
    result = house.run(DISTRIBUTED, "hccl.json", DEVICE_TARGET="Ascend")
    assert result.returncode == 2
    assert "error: hccl.json does not say which server this machine is: set NODE_RANK, 0 to 1" in result.stdout


@pytest.mark.parametrize("device", ["CPU", "GPU", "Ascend"])
def test_several_machines(house: House, device: str):
    first = {"DEVICE_TARGET": device, "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    local = 2 if device == "CPU" else 8
    options = options_of(msrun(house, **first, MASTER_PORT="12399"))
    expected = {"worker_num": str(2 * local), "local_worker_num": str(local), "master_port": "12399"}
    assert options.items() >= {**expected, "node_rank": "0", "master_addr": "127.0.0.1"}.items()
    second = {**first, "NODE_RANK": "1", "MASTER_ADDR": "192.0.2.7", "RANK_SIZE": "6"}
    options = options_of(msrun(house, **second))
    expected = {"worker_num": "6", "local_worker_num": "3", "node_rank": "1", "master_port": "8118"}
    assert options.items() >= {**expected, "master_addr": "192.0.2.7"}.items()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"NODE_RANK": ""}, "NODE_RANK is not set: expected 0 to 1"),
        ({"NODE_RANK": "2"}, "NODE_RANK is 2: expected 0 to 1"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "192.0.2.7"}, "MASTER_ADDR is 192.0.2.7, no address of this machine"),
        ({"RANK_SIZE": "3"}, "RANK_SIZE is 3, the ranks of all machines: expected a multiple of NNODES, 2"),
    ],
)
def test_several_machines_that_cannot_meet(house: House, environment: dict[str, str], words: str):
    given = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", **environment}
    result = house.run(DISTRIBUTED, **given)
    assert result.returncode == 2 and f"error: {words}" in result.stdout, result.stdout
    assert house.calls() == []


def test_the_port_is_another_machines(house: House):
    """Only the first machine opens it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        several = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        refused(house.run(DISTRIBUTED, NODE_RANK="0", **several), house, f"MASTER_PORT {port} is taken")
        assert options_of(msrun(house, NODE_RANK="1", **several))["master_port"] == port


def test_a_device_that_is_not_there_ends_a_distributed_run(house: House):
    """msrun itself would wait for its workers for ever."""
    result = house.run(DISTRIBUTED, DEVICE_TARGET="Ascend", EXIT="2")
    assert result.returncode == 2
    (call,) = house.calls()
    assert call["arguments"] == [str(house.root / "tools" / "check_device.py"), "Ascend", "--quick"]


def test_a_gpu_gets_its_libraries(house: House, tmp_path: Path):
    """tests/test_gpu_env.py says where from."""
    nobody = tmp_path / "nobody"
    nobody.write_text("#!/bin/sh\necho /nowhere\n")  # a Python without packages
    nobody.chmod(0o755)
    result = house.run("train_caption.sh", DEVICE_TARGET="GPU", PYTHON=str(nobody), CUDA_HOME="")
    refused(result, house, "libcudnn.so.8", "pip install -r", "requirements-gpu.txt")
    assert house.run("train_caption.sh", DEVICE_TARGET="GPU").returncode == 0
    (call,) = house.calls()
    assert call["environment"]["CUDA_HOME"] == str(house.cuda) and "runtime.device=GPU" in call["arguments"]


def test_a_rank_table_that_does_not_fit_is_refused(house: House):
    table = rank_table(house, "192.0.2.7")
    refused(house.run(DISTRIBUTED, table), house, "RANK_TABLE_FILE is for Ascend")
    result = house.run(DISTRIBUTED, table, DEVICE_TARGET="Ascend", RANK_SIZE="8")
    refused(result, house, "'hccl.json'", "names 2 ranks, RANK_SIZE is 8")
    result = house.run(DISTRIBUTED, table, DEVICE_TARGET="Ascend", NNODES="2")
    assert result.returncode == 2 and "error: hccl.json: expected 2 servers (NNODES), found 1" in result.stdout


def test_configuration_of_the_distributed_run_comes_from_the_environment(house: House):
    assert house.config("caption") in msrun(house, CONFIG=house.config("caption"))["arguments"]
    refused_config = house.run(DISTRIBUTED, CONFIG="no.yaml")
    assert refused_config.returncode == 2 and "CONFIG 'no.yaml' does not exist" in refused_config.stderr
