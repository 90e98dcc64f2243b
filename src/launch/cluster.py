"""Where ranks run: this machine's part of a launch, and the call of msrun for it."""

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from src.launch.rank_table import LaunchError, Server, read_rank_table

PORT = 8118  # on which several machines meet unless they are told another; msrun's own default
RANKS_OF_A_MACHINE = 8


@dataclass(frozen=True)
class Request:
    """What the user asked for; None where nothing was said.

    Args:
        ranks: processes of all machines.
        nodes, node: number of machines, and which of them this is.
        address, port: where the ranks meet.
        any_port: ``port`` is only a free one of this machine, which nobody asked for.
        table: rank table.
    """

    port: int
    any_port: bool = False
    ranks: int | None = None
    nodes: int | None = None
    node: int | None = None
    address: str | None = None
    table: Path | None = None


@dataclass(frozen=True)
class Place:
    """This machine's part of a launch: ``ranks`` of all ``nodes``, of which this is the ``node``-th.

    ``devices`` are those of this machine's ranks in their order; empty: 0, 1 and so on.
    """

    ranks: int
    nodes: int
    node: int
    address: str
    port: int
    devices: tuple[int, ...] = ()

    @property
    def local(self) -> int:
        """Ranks of this machine."""
        return self.ranks // self.nodes

    @property
    def first(self) -> int:
        """The first rank of this machine."""
        return self.node * self.local


def place(request: Request) -> Place:
    """Works out this machine's part.

    Raises:
        LaunchError: something is missing, or two statements contradict each other.
    """
    for name, value, least in (
        ("RANK_SIZE", request.ranks, 1),
        ("NNODES", request.nodes, 1),
        ("NODE_RANK", request.node, 0),
    ):
        if value is not None and value < least:
            raise LaunchError(f"{name} is {value}: expected {least} or more")
    servers = read_rank_table(request.table) if request.table else []
    nodes = len(servers) or request.nodes or 1
    if request.nodes not in (None, nodes):
        raise LaunchError(f"{request.table}: expected {request.nodes} servers (NNODES), found {nodes}")
    ranks = sum(len(server.ranks) for server in servers) or request.ranks or nodes * RANKS_OF_A_MACHINE
    if servers and request.ranks not in (None, ranks):
        raise LaunchError(f"{request.table}: expected {request.ranks} ranks (RANK_SIZE), found {ranks}")
    if ranks % nodes:
        raise LaunchError(f"RANK_SIZE is {ranks}, the ranks of all machines: expected a multiple of NNODES, {nodes}")
    node = _node(request, servers, nodes)
    devices = servers[node].devices if servers else ()
    if nodes == 1:
        return Place(ranks, 1, 0, "127.0.0.1", request.port, devices)
    address = request.address or (servers[0].address if servers else None)
    if not address:
        raise LaunchError("MASTER_ADDR is not set: with several machines, the address of the one with NODE_RANK 0")
    if node == 0 and not _is_here(address):
        raise LaunchError(f"MASTER_ADDR is {address}, no address of this machine, whose NODE_RANK is 0")
    return Place(ranks, nodes, node, address, PORT if request.any_port else request.port, devices)


def _node(request: Request, servers: list[Server], nodes: int) -> int:
    node = request.node
    if node is None and nodes == 1:
        return 0
    if node is None and servers:
        here = [index for index, server in enumerate(servers) if server.address and _is_here(server.address)]
        if len(here) != 1:
            raise LaunchError(
                f"{request.table} does not say which server this machine is: set NODE_RANK, 0 to {nodes - 1} in the"
                f" order of ranks ({', '.join(server.name for server in servers)})"
            )
        return here[0]
    if node is None or node >= nodes:
        found = "not set" if node is None else str(node)
        raise LaunchError(f"NODE_RANK is {found}: expected 0 to {nodes - 1}, another on each of {nodes} machines")
    return node


def _is_here(address: str) -> bool:
    """True if the IP address, or one of a host name's addresses, is this machine's."""
    try:
        found = socket.getaddrinfo(address.strip("[]"), 0, type=socket.SOCK_DGRAM)
    except OSError:
        raise LaunchError(f"MASTER_ADDR is {address}: no such host is known on this machine") from None
    for family, kind, protocol, _, target in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(target)
            except OSError:
                continue
            return True
    return False


def msrun_command(part: Place, log_dir: Path, table: Path | None, script: list[str]) -> list[str]:
    """The words that start this machine's ranks."""
    command = [sys.executable, "-m", "mindspore.parallel.cluster.run"]
    command += [f"--worker_num={part.ranks}", f"--local_worker_num={part.local}"]
    command += [f"--master_addr={part.address}", f"--master_port={part.port}"]
    if part.nodes > 1:
        command.append(f"--node_rank={part.node}")
    command += [f"--log_dir={log_dir}", "--join=True"]
    command.append(f"--tail_worker_log={part.ranks}")  # no such rank: the supervisor shows the log itself
    if table:
        command.append(f"--rank_table_file={table}")
    return command + script


def environment_of(part: Place) -> dict[str, str]:
    """The variables of msrun: those of this process, and the devices if they are not the first ones in their order.

    msrun gives a machine's n-th rank its n-th device. ASCEND_RT_VISIBLE_DEVICES says which one that is.
    """
    environment = dict(os.environ)
    if part.devices not in ((), tuple(range(part.local))):
        environment.setdefault("ASCEND_RT_VISIBLE_DEVICES", ",".join(map(str, part.devices)))
    return environment
