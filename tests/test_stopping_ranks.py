"""A training on two ranks is signalled and started again: both save the same step, and nothing changes."""

import signal
from pathlib import Path

import pytest
from test_stopping import stop_and_go_on

from benchmarks.kill import Victim, make_corpus

pytestmark = pytest.mark.ranks


def test_signalled_ranks_go_on(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    expected = Victim(corpus, 2, tmp_path / "whole").finish()
    stop_and_go_on(Victim(corpus, 2, tmp_path / "stopped"), signal.SIGTERM, expected)
