#!/usr/bin/env bash
# Fine-tunes captioning on one device.
#
#   bash scripts/train_caption.sh [CONFIG] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   CONFIG            config file (default: config/caption/demo.yaml)
#   PRETRAINED_MODEL  run folder, checkpoint folder or pretrained/opt_demo to start from (default: what CONFIG says)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG=config/caption/demo.yaml PRETRAINED_MODEL= -- "$@"
train
