"""Rank tables of HCCL and this machine's part of a launch."""

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.launch.cluster import Place, Request, environment_of, msrun_command, place
from src.launch.rank_table import LaunchError, Server, read_rank_table

HOST, ELSEWHERE = "127.0.0.1", "192.0.2.7"  # the second is reserved for documents: no machine has it


def of_devices(version: str = "1.0") -> dict:
    """Format 1.0 or 1.2: two servers with two ranks each, the second one listed first."""
    servers = []
    for server, name in ((1, ELSEWHERE), (0, HOST)):
        devices = [
            {"device_id": str(4 + n), "device_ip": f"192.168.{server}.{n}", "rank_id": str(2 * server + n)}
            for n in range(2)
        ]
        servers.append({"server_id": name, "host_nic_ip": "reserve", "device": devices})
    return {"version": version, "status": "completed", "server_count": "2", "server_list": servers}


def of_ranks() -> dict:
    """Format 2.0: two servers with two ranks each; numbers are numbers."""
    ranks = []
    for rank in range(4):
        layers = [
            {"net_layer": 0, "net_instance_id": f"rack0-pod{rank // 2}", "net_type": "TOPO_FILE_DESC"},
            {"net_layer": 1, "net_instance_id": "az0", "net_type": "CLOS"},
        ]
        ranks.append({"rank_id": rank, "local_id": rank % 2, "device_id": rank % 2, "level_list": layers})
    return {"version": "2.0", "status": "completed", "rank_count": 4, "rank_list": ranks}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write_table(table: Any) -> Path:
        path = tmp_path / "hccl.json"
        text = table if isinstance(table, str) else json.dumps(table)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return path

    return write_table


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_servers_of_devices_are_ordered_by_rank(write, version: str) -> None:
    expected = [Server(HOST, HOST, (0, 1), (4, 5)), Server(ELSEWHERE, ELSEWHERE, (2, 3), (4, 5))]
    assert read_rank_table(write(of_devices(version))) == expected


def test_ranks_and_not_names_order_the_servers(write) -> None:
    table = of_devices("1.0")
    for server in table["server_list"]:
        server["server_id"] = {HOST: "zeta", ELSEWHERE: "alpha"}[server["server_id"]]
    assert [(server.name, server.ranks) for server in read_rank_table(write(table))] == [
        ("zeta", (0, 1)),
        ("alpha", (2, 3)),
    ]


def test_a_server_may_have_a_name_and_an_address(write) -> None:
    table = of_devices()
    table["server_list"][0] |= {"server_id": "second", "host_ip": ELSEWHERE}
    table["server_list"][1] |= {"server_id": "first"}
    found = read_rank_table(write(table))
    assert [(server.name, server.address) for server in found] == [("first", None), ("second", ELSEWHERE)]


def test_servers_of_ranks(write) -> None:
    expected = [Server("rack0-pod0", None, (0, 1), (0, 1)), Server("rack0-pod1", None, (2, 3), (0, 1))]
    assert read_rank_table(write(of_ranks())) == expected
    table = of_ranks()
    for rank in table["rank_list"]:
        rank |= {"level_list": [], "local_id": rank["rank_id"]}
    (server,) = read_rank_table(write(table))
    assert server.ranks == (0, 1, 2, 3), "without layers there is one server"


def test_devices_follow_the_ranks(write) -> None:
    table = of_devices()
    first, second = table["server_list"][1]["device"]
    first["rank_id"], second["rank_id"] = "1", "0"
    assert read_rank_table(write(table))[0] == Server(HOST, HOST, (0, 1), (5, 4))


def changed(table: dict, path: tuple, value: Any) -> dict:
    """A copy with another value at the path; None takes the key out."""
    table = copy.deepcopy(table)
    place_of = table
    for key in path[:-1]:
        place_of = place_of[key]
    if value is None:
        del place_of[path[-1]]
    else:
        place_of[path[-1]] = value
    return table


DEVICE = ("server_list", 0, "device", 0)
LAYER = ("rank_list", 0, "level_list", 0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("{", "line 1, column 2: not JSON"),
        ('{"version": "\udcff"}', "expected JSON in UTF-8"),
        ([], "expected an object with the keys version, status and server_list or rank_list"),
        (changed(of_devices(), ("version",), None), "version is missing: expected '1.0', '1.2' or '2.0'"),
        (changed(of_devices(), ("version",), "0.9"), "version is '0.9': expected '1.0', '1.2' or '2.0'"),
        (changed(of_devices(), ("version",), ["1.0"]), "version is a list: expected '1.0', '1.2' or '2.0'"),
        (changed(of_devices(), ("status",), "initializing"), "status is 'initializing': expected 'completed'"),
        (changed(of_devices(), ("server_list",), None), "server_list is missing: expected a list of servers"),
        (changed(of_devices(), ("server_list",), []), "server_list is empty, a list: expected a list of servers"),
        (changed(of_devices(), ("server_list", 1), "x"), "server_list[1] is 'x': expected an object"),
        (changed(of_devices(), ("server_count",), "3"), "server_count is '3': expected 2, the length of server_list"),
        (changed(of_devices(), ("server_list", 0, "server_id"), None), "server_list[0].server_id is missing"),
        (
            changed(of_devices(), ("server_list", 1, "device"), {}),
            "server_list[1].device is empty, an object: expected a list",
        ),
        (changed(of_devices(), (*DEVICE, "rank_id"), None), "server_list[0].device[0].rank_id is missing"),
        (changed(of_devices(), (*DEVICE, "rank_id"), "two"), "device[0].rank_id is 'two': expected a whole number"),
        (changed(of_devices(), (*DEVICE, "rank_id"), True), "device[0].rank_id is True: expected a whole number"),
        (changed(of_devices(), (*DEVICE, "rank_id"), 1.5), "device[0].rank_id is 1.5: expected a whole number"),
        (changed(of_devices(), (*DEVICE, "rank_id"), "1"), "rank_id 1 appears twice: expected each of 0 to 3 once"),
        (changed(of_devices(), (*DEVICE, "rank_id"), "9"), "rank_id 3 is there, but 2 is not: expected each of 0 to 3"),
        (
            changed(of_devices(), (*DEVICE, "device_id"), "5"),
            "device[1].device_id is '5': expected another number than",
        ),
        (changed(of_ranks(), ("rank_count",), 5), "rank_count is 5: expected 4, the length of rank_list"),
        (changed(of_ranks(), ("rank_list", 2, "local_id"), None), "rank_list[2].local_id is missing"),
        (changed(of_ranks(), (*LAYER, "net_layer"), 3), "level_list is a list: expected an entry with net_layer 0"),
        (changed(of_ranks(), (*LAYER, "net_instance_id"), 7), "level_list[0].net_instance_id is 7: expected a name"),
        (
            changed(of_ranks(), (*LAYER, "net_instance_id"), "rack0-pod1"),
            "rank_list[2].local_id is 0: expected another number than rank_list[0]'s on server rack0-pod1",
        ),
        (
            changed(of_ranks(), ("rank_list", 2), of_ranks()["rank_list"][1] | {"rank_id": 2, "local_id": 2}),
            "server rack0-pod0 has 3 ranks, server rack0-pod1 1: expected as many on each",
        ),
    ],
)
def test_a_malformed_table_is_explained_in_one_line(write, table: Any, words: str) -> None:
    path = write(table)
    with pytest.raises(LaunchError) as error:
        read_rank_table(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message, message


def test_ranks_that_take_turns_are_refused(write) -> None:
    table = of_ranks()
    table["rank_list"][1]["rank_id"], table["rank_list"][2]["rank_id"] = 2, 1
    with pytest.raises(LaunchError, match="server rack0-pod0 has the ranks 0, 2: expected consecutive ones"):
        read_rank_table(write(table))


def test_one_machine() -> None:
    assert place(Request(port=9000, any_port=True)) == Place(8, 1, 0, "127.0.0.1", 9000)
    # what an outer launcher may have left in the environment
    assert place(Request(port=9000, ranks=3, address=ELSEWHERE, node=0)) == Place(3, 1, 0, "127.0.0.1", 9000)


def test_several_machines() -> None:
    part = place(Request(port=9000, nodes=3, node=2, ranks=6, address=ELSEWHERE))
    assert part == Place(6, 3, 2, ELSEWHERE, 9000) and (part.local, part.first) == (2, 4)
    assert place(Request(port=9000, any_port=True, nodes=3, node=2, address=ELSEWHERE)) == Place(
        24, 3, 2, ELSEWHERE, 8118
    )
    assert place(Request(port=9000, nodes=2, node=0, address="localhost")).address == "localhost"


def test_a_table_says_which_machine_this_is(write) -> None:
    table = write(of_devices())
    assert place(Request(port=9000, table=table)) == Place(4, 2, 0, HOST, 9000, (4, 5))
    assert place(Request(port=9000, table=table, node=1)) == Place(4, 2, 1, HOST, 9000, (4, 5))
    for request, found in (
        (Request(9000, ranks=8, table=table), "8 ranks"),
        (Request(9000, nodes=3, table=table), "3 "),
    ):
        with pytest.raises(LaunchError, match=f"expected {found}"):
            place(request)
    table = write(of_ranks())
    with pytest.raises(LaunchError, match=r"set NODE_RANK, 0 to 1 in the order of ranks \(rack0-pod0, rack0-pod1\)"):
        place(Request(port=9000, table=table))
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set"):
        place(Request(port=9000, table=table, node=1))
    assert place(Request(port=9000, table=table, node=1, address=ELSEWHERE)) == Place(4, 2, 1, ELSEWHERE, 9000, (0, 1))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(port=1, nodes=0), "NNODES is 0: expected 1 or more"),
        (Request(port=1, ranks=0), "RANK_SIZE is 0: expected 1 or more"),
        (Request(port=1, node=-1), "NODE_RANK is -1: expected 0 or more"),
        (Request(port=1, node=1), "NODE_RANK is 1: expected 0 to 0"),
        (
            Request(port=1, nodes=2, node=0, ranks=5, address=HOST),
            "RANK_SIZE is 5, the ranks of all machines: expected a multiple of NNODES, 2",
        ),
        (
            Request(port=1, nodes=2, node=0, address=ELSEWHERE),
            f"MASTER_ADDR is {ELSEWHERE}, no address of this machine, whose NODE_RANK is 0",
        ),
        (Request(port=1, nodes=2, node=0, address="no-such-host.invalid"), "no such host is known on this machine"),
    ],
)
def test_what_cannot_be_launched(request_: Request, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        place(request_)


def test_devices_in_another_order_are_made_visible_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    name = "ASCEND_RT_VISIBLE_DEVICES"
    assert name not in environment_of(Place(2, 1, 0, HOST, 9000, (0, 1)))
    assert environment_of(Place(2, 1, 0, HOST, 9000, (1, 0)))[name] == "1,0"
    monkeypatch.setenv(name, "6,7")
    assert environment_of(Place(2, 1, 0, HOST, 9000, (1, 0)))[name] == "6,7", "the user's own choice stays"


def test_msrun_is_told_the_place(tmp_path: Path) -> None:
    words = msrun_command(Place(6, 3, 2, ELSEWHERE, 9000), tmp_path, None, ["train.py", "--config", "x"])
    assert words[1:3] == ["-m", "mindspore.parallel.cluster.run"] and words[-3:] == ["train.py", "--config", "x"]
    expected = {"--worker_num=6", "--local_worker_num=2", "--node_rank=2", f"--master_addr={ELSEWHERE}"}
    assert expected < set(words) and "--master_port=9000" in words and f"--log_dir={tmp_path}" in words
    assert not any(word.startswith("--rank_table_file") for word in words)
    words = msrun_command(Place(8, 1, 0, HOST, 9000), tmp_path, tmp_path / "hccl.json", ["train.py"])
    assert words[-2:] == [f"--rank_table_file={tmp_path}/hccl.json", "train.py"]
    assert not any(word.startswith("--node_rank") for word in words), "of one machine"


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 address")
    assert place(Request(port=9000, nodes=2, node=0, address="[::1]")).node == 0
