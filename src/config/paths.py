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


def path_setting(key: str, path: str | PurePath) -> str:
    """``key=value`` of a path, quoted where YAML would read more in its name: ``run #3``, ``a: b``, ``12``."""
    text = os.path.join(".", path) if str(path).startswith("~") else str(path)  # a folder named ~ is not the home
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    quoted = text if plain else yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")
    return f"{key}={quoted}"
