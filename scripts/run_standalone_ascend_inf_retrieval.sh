#!/usr/bin/env bash
# Measures retrieval between images, text and speech on one device.
#
#   bash scripts/run_standalone_ascend_inf_retrieval.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      configuration (default: config/retrieval/demo.yaml of the repository)
#   CHECKPOINT  run or checkpoint folder (default: train.output of CONFIG, which must be trained then; without CONFIG,
#               if its default was never trained, the bundled checkpoint pretrained/opt_demo)
#   DIR         folder of metrics.json and the figures
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG= CHECKPOINT= -- "$@"
evaluate "$ROOT/config/retrieval/demo.yaml" opt_demo
