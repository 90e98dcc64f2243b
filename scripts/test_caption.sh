#!/usr/bin/env bash
# Captions the images of the test split and measures the captions.
#
#   bash scripts/test_caption.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      configuration (default: config/caption/demo.yaml of the repository)
#   CHECKPOINT  run or checkpoint folder (default: train.output of CONFIG, which must be trained then; without CONFIG,
#               if its default was never trained, the bundled checkpoint pretrained/opt_demo)
#   DIR         folder of metrics.json and the figures
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG= CHECKPOINT= -- "$@"
evaluate "$ROOT/config/caption/demo.yaml" opt_demo
