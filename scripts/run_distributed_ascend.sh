#!/usr/bin/env bash
# Pre-trains on several devices of one machine or of several: one process each, started by msrun.
#
#   bash scripts/run_distributed_ascend.sh [RANK_TABLE_FILE] [PRETRAINED_MODEL] [key=value ...] [--resume]
#
#   RANK_TABLE_FILE   Ascend only: JSON file with the devices (HCCL's format 1.0, 1.2 or 2.0); left out, msrun finds them
#   PRETRAINED_MODEL  run or checkpoint folder to start from (default: train.init_from of CONFIG)
#
# Environment:
#   CONFIG            configuration (default: config/pretrain/demo.yaml of the repository)
#   RANK_SIZE         processes of all machines (default: of the table, else 8 a machine, on a CPU 2); also WORKER_NUM
#   NNODES            machines (default: of the table, else 1); each runs this script
#   NODE_RANK         number of this machine, from 0 (default: found in the table)
#   MASTER_ADDR       address of machine 0 (default: of the table)
#   MASTER_PORT       port on which the processes meet (default: a free one, with several machines 8118)
#
# docs/scaling.md has examples and says what becomes of failures and signals.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG="${CONFIG:-$ROOT/config/pretrain/demo.yaml}"
parse_arguments RANK_TABLE_FILE= PRETRAINED_MODEL= -- "$@"
train_distributed
