#!/usr/bin/env bash
# A page in the browser to try a trained model with: search, describe, ask, generate, match. docs/web.md describes it.
#
#   bash scripts/run_web.sh [CHECKPOINT] [--gallery DIR] [--port N] [--compare CHECKPOINT] [key=value ...]
#
#   CHECKPOINT   run or checkpoint folder (default: the bundled opt_demo)
#   --gallery    folder that is searched (default: assets/gallery of the repository)
#   --port       of this machine (default: 7860)
#   --compare    a second model, shown beside it
#
# The first call makes .venv in the repository. python tools/web.py --help names all options.
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
install_into_venv requirements-web.txt
if (($#)) && [[ $1 != -* ]] && ! is_setting "$1"; then
  set -- --checkpoint "$@"
fi
exec "$VENV_PYTHON" "$ROOT/tools/web.py" "$@"
