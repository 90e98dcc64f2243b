#!/usr/bin/env bash
# Answers the questions of the test split and measures the answers.
#
#   bash scripts/test_vqa.sh [CONFIG] [CHECKPOINT] [key=value ...] [--output=DIR]
#
#   CONFIG      configuration (default: config/vqa/demo.yaml of the repository)
#   CHECKPOINT  run or checkpoint folder (default: train.output of CONFIG, which must be trained then; without CONFIG,
#               if its default was never trained, the bundled checkpoint pretrained/opt_demo_vqa)
#   DIR         folder of metrics.json
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG= CHECKPOINT= -- "$@"
evaluate "$ROOT/config/vqa/demo.yaml" opt_demo_vqa
