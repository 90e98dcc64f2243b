#!/usr/bin/env bash
# Measures retrieval between pictures, text and speech on one device.
#
#   bash scripts/run_standalone_ascend_inf_retrieval.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      config file (default: config/retrieval/demo.yaml)
#   CHECKPOINT  run folder, checkpoint folder or pretrained/opt_demo
#               (default: the run folder that CONFIG names, else pretrained/opt_demo)
#   DIR         where metrics.json and the figures go
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG=config/retrieval/demo.yaml CHECKPOINT= -- "$@"
evaluate
