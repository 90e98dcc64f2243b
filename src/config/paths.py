"""Which settings are paths, and what a relative path is relative to.

A path that a user gives is relative to the current folder. In a configuration that ships with the repository a path
that begins with config/, pretrained/ or assets/ names the repository's own file. ``~`` is the user's home everywhere.
"""

import math
import os
from pathlib import Path, PurePath
from typing import Annotated

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
OWN_FOLDERS = ("config", "pretrained", "assets")

PATH = "path"  # marks the type of a setting that names a file or folder
PathText = Annotated[str, PATH]

QUOTES, NULLS = ("'", '"'), ("null", "Null", "NULL")  # YAML's


def is_shipped(file: str | Path) -> bool:
    """Whether a configuration file lies in the repository's config folder."""
    return Path(file).resolve().is_relative_to(REPOSITORY / "config")


def resolve(text: str, shipped: bool) -> str:
    """A path-valued setting as the program uses it; ``shipped``: it stands in a configuration of the repository."""
    if text.startswith("~"):
        try:
            return str(Path(text).expanduser())
        except RuntimeError:  # no such user: a file may well be called so
            return text
    if shipped and PurePath(text).parts[:1] in [(folder,) for folder in OWN_FOLDERS]:
        return str(REPOSITORY / text)
    return text


def read_text_setting(word: str) -> str | None:
    """The text that a ``key=word`` of the command line means: the word as it is, whatever YAML would read in it.

    A word that is one quoted YAML scalar means what is quoted, and ``null`` is YAML's null.
    """
    if word in NULLS:
        return None
    if word[:1] not in QUOTES:
        return word
    try:
        node = yaml.compose(word, yaml.SafeLoader)
    except yaml.YAMLError:
        return word
    quoted = isinstance(node, yaml.ScalarNode) and node.style in QUOTES and node.end_mark.index == len(word)
    return node.value if quoted else word


def quote_text(text: str) -> str:
    """The word of which :func:`read_text_setting` makes this text: mostly itself; ``null`` and ``'a'`` are quoted."""
    if read_text_setting(text) == text:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


def path_setting(key: str, path: str | PurePath) -> str:
    """``key=value`` of a path, whatever its name."""
    text = os.path.join(".", path) if str(path).startswith("~") else str(path)  # a folder named ~ is not the home
    return f"{key}={quote_text(text)}"
