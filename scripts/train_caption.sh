#!/usr/bin/env bash
# Fine-tunes captioning on one device.
#
#   bash scripts/train_caption.sh [CONFIG] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   CONFIG            configuration (default: config/caption/demo.yaml of the repository)
#   PRETRAINED_MODEL  run or checkpoint folder to start from (default: train.init_from of CONFIG)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG="$ROOT/config/caption/demo.yaml" PRETRAINED_MODEL= -- "$@"
train
