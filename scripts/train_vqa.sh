#!/usr/bin/env bash
# Fine-tunes visual question answering on one device.
#
#   bash scripts/train_vqa.sh [CONFIG] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   CONFIG            configuration (default: config/vqa/demo.yaml of the repository)
#   PRETRAINED_MODEL  run or checkpoint folder to start from (default: train.init_from of CONFIG)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG="$ROOT/config/vqa/demo.yaml" PRETRAINED_MODEL= -- "$@"
train
