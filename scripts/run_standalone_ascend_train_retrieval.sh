#!/usr/bin/env bash
# Fine-tunes retrieval between pictures, text and speech on one device.
#
#   bash scripts/run_standalone_ascend_train_retrieval.sh [CONFIG] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   CONFIG            config file (default: config/retrieval/demo.yaml)
#   PRETRAINED_MODEL  run folder, checkpoint folder or pretrained/opt_demo to start from (default: what CONFIG says)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse_arguments CONFIG=config/retrieval/demo.yaml PRETRAINED_MODEL= -- "$@"
train
