#!/usr/bin/env bash
# The whole path on generated data, from making it to a report. Ten to fifteen minutes on two cores.
#
#   bash scripts/run_demo.sh [--fast] [--world demo|demo_full] [--output DIR] [--restart]
#
#   --fast     every stage with little data and few steps: some minutes, in runs/demo-fast
#   --world    demo: 28 objects (default); demo_full: all 86, which need a longer training
#   --output   folder of the results (default: runs/demo of the current folder)
#   --restart  empties and repeats what is there and was made with other options or settings
#
# The first call makes .venv in the repository. Finished stages are not repeated by another call.
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
install_into_venv requirements.txt
exec "$VENV_PYTHON" "$ROOT/tools/run_demo.py" "$@"
