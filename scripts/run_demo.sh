#!/usr/bin/env bash
# The whole path on made-up data, some 15 minutes on two cores: data, training, evaluation, export, pictures.
#
#   bash scripts/run_demo.sh [--fast] [--world demo|demo_full] [--output DIR]
#
#   --fast     every stage with little data and few steps: some minutes, in runs/demo-fast
#   --world    demo: few objects (default); demo_full: 86 objects, which need a longer training
#   --output   folder of the results, relative to the repository (default: runs/demo)
#
# Makes .venv on the first call. Stages that are finished are not repeated by another call.
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
cd "$ROOT"
exec "$VENV_PYTHON" -m src.demo.stages "$@"
