#!/usr/bin/env bash
# Sets up .venv with requirements-dev.txt, then checks the sources and runs the tests.
#
#   bash scripts/run_tests.sh [argument of pytest ...]
#
#   tests/test_config.py   these tests alone
#   -m "not e2e"           without the runs of whole commands
#
# Environment:
#   PYTHON   the Python 3.10, 3.11 or 3.12 that .venv is made with (default: found on PATH)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  show_help
  exit
fi
install_into_venv requirements-dev.txt
cd "$ROOT"
BIN="${VENV_PYTHON%/*}"
"$BIN/ruff" check .
"$BIN/shellcheck" --external-sources scripts/*.sh .ci/run
if (($#)); then
  "$VENV_PYTHON" -m pytest -q --durations=10 "$@"
  exit
fi

exec "$VENV_PYTHON" tests/run_files.py
