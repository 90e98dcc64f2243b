#!/usr/bin/env bash
# Measures retrieval between images, text and speech on one device.
#
#   bash scripts/run_standalone_ascend_inf_retrieval.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      configuration (default: config/retrieval/demo.yaml of the repository)
#   CHECKPOINT  run or checkpoint folder (default: train.output of CONFIG if it was trained,
#               else the bundled checkpoint pretrained/opt_demo)
#   DIR         folder of metrics.json and the figures
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG="$ROOT/config/retrieval/demo.yaml" CHECKPOINT= -- "$@"
evaluate
