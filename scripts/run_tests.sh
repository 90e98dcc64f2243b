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

# One process for each file: MindSpore's device, mode and seed belong to the process, and those of one file must not reach
# another. Several run at once, each on a core of its own: two that share cores wait for each other's threads. Large files
# come first, so that none is left alone at the end. Before them come files that start several ranks, which need all cores:
# on one core it can take them a minute to find each other.
read -ra CORES <<< "$("$VENV_PYTHON" -c 'import os; print(*sorted(os.sched_getaffinity(0))[:4])')"
LOGS="$(mktemp -d)"
trap 'rm -rf "$LOGS"' EXIT
export VENV_PYTHON LOGS
status=0

# run_files CORES: the files on standard input, one for each slot; CORES are the slots', separated by spaces.
run_files() {
  # shellcheck disable=SC2016 # the inner shell expands what is quoted
  CORE_LIST="$1" xargs -r -P "${#CORES[@]}" -n 1 --process-slot-var=SLOT bash -c '
    read -ra cores <<< "$CORE_LIST"
    log="$LOGS/${1##*/}" code=0
    echo "$1" > "$log"
    taskset -c "${cores[SLOT]}" "$VENV_PYTHON" -m pytest -q "$1" >> "$log" 2>&1 || code=$?
    flock "$LOGS" cat "$log"  # whole: a log may be longer than an argument of a command
    ((code == 0)) || { echo "$1" >> "$LOGS/failed"; exit 1; }
  ' run || status=$?
}

RANKS='^pytestmark = pytest.mark.ranks$'
ALL="$(IFS=,; echo "${CORES[*]}")"
# shellcheck disable=SC2046 # names of tests are plain
run_files "${CORES[*]/*/$ALL}" < <(ls -S $(grep -l "$RANKS" tests/test_*.py))
# shellcheck disable=SC2046
run_files "${CORES[*]}" < <(ls -S $(grep -L "$RANKS" tests/test_*.py))
if ((status)); then
  echo "failed: $(cat "$LOGS/failed" || echo "xargs, with exit code $status")" >&2
  exit 1
fi
