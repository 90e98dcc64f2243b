"""Ids of records where several inputs of a corpus use the same names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path


@dataclass(frozen=True)
class Ids:
    """The ids of one input's records, by their names.

    Attributes:
        usual: what stands before a name.
        longer: the same for a name that is in ``shared``.
        shared: usual ids that inputs of other folders have, too.
    """

    usual: str
    longer: str
    shared: frozenset[str]

    def __call__(self, name: str) -> str:
        return (self.longer if self.usual + name in self.shared else self.usual) + name


def ids_of(
    splits: Sequence[str | None], folders: Sequence[Path], names: Sequence[Iterable[str]], by_split: bool = False
) -> list[Ids]:
    """How the records of each input are called: by name alone, unless two folders have a record of that name.

    Args:
        splits: of the inputs.
        folders: of their images.
        names: of their records.
        by_split: every id begins with the split, where one is given.
    """
    usual = [f"{split}/" if split and by_split else "" for split in splits]
    places: dict[str, Path] = {}
    shared: set[str] = set()
    for start, folder, listed in zip(usual, folders, names, strict=True):
        place = folder.resolve()
        shared.update(start + name for name in listed if places.setdefault(start + name, place) != place)
    longer, common = prefixes(splits, folders), frozenset(shared)
    return [Ids(*pair, common) for pair in zip(usual, longer, strict=True)]


def prefixes(splits: Sequence[str | None], places: Sequence[Path]) -> list[str]:
    """What tells the inputs of a corpus apart: ``SPLIT/``, and the end of its path where its split has several.

    Args:
        splits: of the inputs.
        places: a file or folder of each; the same one tells nothing apart.
    """
    whole = [place.resolve() for place in places]
    found = []
    for split, place in zip(splits, whole, strict=True):
        rivals = {other for name, other in zip(splits, whole, strict=True) if name == split}
        parts = [split] if split else []
        if len(rivals) > 1:
            parts += place.parts[-_telling(rivals) :]
        found.append("".join(f"{part}/" for part in parts))
    return found


def _telling(paths: set[Path]) -> int:
    """How many of the last parts of paths are needed to tell them apart."""
    return next(number for number in count(1) if len({path.parts[-number:] for path in paths}) == len(paths))
