#!/usr/bin/env bash
# Captions the pictures of the test split and measures the captions.
#
#   bash scripts/test_caption.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      config file (default: config/caption/demo.yaml)
#   CHECKPOINT  run folder, checkpoint folder or pretrained/opt_demo
#               (default: the run folder that CONFIG names, else pretrained/opt_demo)
#   DIR         where metrics.json and the figures go
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG=config/caption/demo.yaml CHECKPOINT= -- "$@"
evaluate
