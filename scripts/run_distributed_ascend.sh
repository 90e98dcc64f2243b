#!/usr/bin/env bash
# Pre-trains on several devices of this machine: one process each, started by msrun.
#
#   bash scripts/run_distributed_ascend.sh [RANK_TABLE_FILE] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   RANK_TABLE_FILE   Ascend only: JSON file with the devices; left out, msrun finds them
#   PRETRAINED_MODEL  run or checkpoint folder to start from (default: train.init_from of CONFIG)
#
# Environment:
#   CONFIG            configuration (default: config/pretrain/demo.yaml of the repository)
#   RANK_SIZE         processes (default: 8, on a CPU 2); WORKER_NUM is another name for it
#   MASTER_PORT       port on which the processes meet (default: a free one)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG="${CONFIG:-$ROOT/config/pretrain/demo.yaml}"
parse_arguments RANK_TABLE_FILE= PRETRAINED_MODEL= -- "$@"
train_distributed
