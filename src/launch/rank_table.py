"""HCCL rank tables: which servers take part in a launch, with which ranks on which devices.

Formats 1.0 and 1.2 list servers with their devices, format 2.0 lists ranks (HCCL's documents, "rank table"). In 2.0 the
ranks of a server share the ``net_instance_id`` of ``net_layer`` 0, the layer of links within a server.
"""

import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError


class LaunchError(UserError):
    """Ranks cannot be launched as asked; the message is one line: where, what is wrong, what is expected."""


@dataclass(frozen=True)
class Server:
    """A machine of the table.

    Args:
        name: what the table calls it.
        address: its IP address if the table gives one.
        ranks: its ranks in their order.
        devices: the device of each of these ranks.
    """

    name: str
    address: str | None
    ranks: tuple[int, ...]
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A value of the table, and the key that leads to it."""

    file: Path
    key: str
    value: Any

    def wrong(self, expected: str) -> LaunchError:
        kind = {list: "a list", dict: "an object"}.get(type(self.value))
        shown = f"{'' if self.value else 'empty, '}{kind}" if kind else repr(self.value)
        return LaunchError(f"{self.file}: {self.key} is {shown}: expected {expected}")

    def get(self, name: str, expected: str) -> "Entry":
        """The value of a key that must be there."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        key = f"{self.key}.{name}" if self.key else name
        if name not in self.value:
            raise LaunchError(f"{self.file}: {key} is missing: expected {expected}")
        return Entry(self.file, key, self.value[name])

    def has(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def entries(self, name: str, expected: str) -> "list[Entry]":
        """The values of a list that is not empty."""
        found = self.get(name, expected)
        if not isinstance(found.value, list) or not found.value:
            raise found.wrong(expected)
        return [Entry(self.file, f"{found.key}[{index}]", value) for index, value in enumerate(found.value)]

    def text(self, name: str, expected: str) -> str:
        found = self.get(name, expected)
        if not isinstance(found.value, str) or not found.value:
            raise found.wrong(expected)
        return found.value

    def number(self, name: str, expected: str = "a whole number, 0 or more") -> int:
        """A number, or digits in quotes: tables have both."""
        found = self.get(name, expected)
        value = found.value
        digits = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
        if not (digits.isascii() and digits.isdigit()):
            raise found.wrong(expected)
        return int(digits)


def read_rank_table(file: Path) -> list[Server]:
    """The servers of a rank table, ordered by rank.

    Raises:
        LaunchError: the file is not a rank table, or one that msrun cannot follow: it starts as many ranks on each
            machine, numbered one machine after the other.
    """
    table = Entry(file, "", _parse(file))
    if not isinstance(table.value, dict):
        raise LaunchError(f"{file}: expected an object with the keys version, status and server_list or rank_list")
    version = table.get("version", "'1.0', '1.2' or '2.0'")
    readers = {"1.0": _servers_of_devices, "1.2": _servers_of_devices, "2.0": _servers_of_ranks}
    if not isinstance(version.value, str) or version.value not in readers:
        raise version.wrong("'1.0', '1.2' or '2.0'")
    if table.has("status") and table.get("status", "").value != "completed":
        raise table.get("status", "").wrong("'completed': the table is not ready")
    servers = sorted(readers[version.value](table), key=lambda server: server.ranks)
    _check_order(file, servers)
    return servers


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise LaunchError(f"{file}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise LaunchError(f"{file}: expected JSON in UTF-8") from None


def _servers_of_devices(table: Entry) -> Iterator[Server]:
    """Formats 1.0 and 1.2."""
    servers = table.entries("server_list", "a list of servers")
    if table.has("server_count") and table.number("server_count") != len(servers):
        raise table.get("server_count", "").wrong(f"{len(servers)}, the length of server_list")
    for server in servers:
        name = server.text("server_id", "the server's name, mostly its IP address")
        host = server.value.get("host_ip", name)
        yield _server(name, host, server.entries("device", "a list of devices"), "device_id")


def _servers_of_ranks(table: Entry) -> Iterator[Server]:
    """Format 2.0, which names no address of a host."""
    ranks = table.entries("rank_list", "a list of ranks")
    if table.number("rank_count") != len(ranks):
        raise table.get("rank_count", "").wrong(f"{len(ranks)}, the length of rank_list")
    servers: dict[str, list[Entry]] = {}
    for rank in ranks:
        servers.setdefault(_instance(rank), []).append(rank)
    for name, members in servers.items():
        yield _server(name, "", members, "local_id")


def _instance(rank: Entry) -> str:
    """The server of a rank of format 2.0; a table of one server may leave it out."""
    if not rank.has("level_list") or rank.value["level_list"] == []:
        return "(unnamed)"
    for level in rank.entries("level_list", "a list of network layers"):
        if level.number("net_layer") == 0:
            return level.text("net_instance_id", "a name that the ranks of one server share")
    raise rank.get("level_list", "").wrong("an entry with net_layer 0, whose net_instance_id names the server")


def _server(name: str, host: Any, members: list[Entry], unique: str) -> Server:
    """Args: ``unique`` is the key that no two ranks of a server share."""
    first: dict[int, Entry] = {}
    for member in members:
        other = first.setdefault(member.number(unique), member)
        if other is not member:
            hint = "each server needs its own net_instance_id" if unique == "local_id" else "each device has one rank"
            raise member.get(unique, "").wrong(f"another number than {other.key}'s on server {name}: {hint}")
    pairs = sorted((member.number("rank_id"), member.number("device_id")) for member in members)
    ranks, devices = zip(*pairs, strict=True)
    return Server(name, host if _is_address(host) else None, ranks, devices)


def _is_address(text: Any) -> bool:
    try:
        return isinstance(text, str) and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _check_order(file: Path, servers: list[Server]) -> None:
    ranks = sorted(rank for server in servers for rank in server.ranks)
    for expected, found in enumerate(ranks):
        if found != expected:
            problem = "appears twice" if found < expected else f"is there, but {expected} is not"
            raise LaunchError(f"{file}: rank_id {found} {problem}: expected each of 0 to {len(ranks) - 1} once")
    first = servers[0]
    for server in servers:
        if len(server.ranks) != len(first.ranks):
            counts = f"server {first.name} has {len(first.ranks)} ranks, server {server.name} {len(server.ranks)}"
            raise LaunchError(f"{file}: {counts}: expected as many on each, as msrun starts them")
        if server.ranks[-1] - server.ranks[0] >= len(server.ranks):
            found = ", ".join(map(str, server.ranks))
            raise LaunchError(f"{file}: server {server.name} has the ranks {found}: expected consecutive ones")
