# shellcheck shell=bash
# Functions that the launchers and the commands share. It is sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
SCRIPT="$(basename "$0")"

die() {
  printf '%s: %s\n' "$SCRIPT" "$*" >&2
  exit 2
}

# The comment at the head of a script is its help.
show_help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

show_launcher_help() {
  show_help
  cat <<'TEXT'

Shared by all launchers:
  key=value ...   settings that win over the configuration, for instance train.steps=100; not what names an existing path
  DEVICE_TARGET   CPU, GPU or Ascend (default)
  PYTHON          the Python to run with (default: .venv of this repository, else python on PATH)
The run starts in the current folder: relative paths start from it, those of arguments and settings as well as runs/…
in configurations. "-" stands for an argument that is left out. Output is shown and kept under runs/logs/.
TEXT
}

# Arrays that may be empty are expanded as ${NAME[@]+"${NAME[@]}"}: under set -u, bash 4.3 takes an empty array for unset.

# is_there PATH: whether it exists, of RUN@best the run.
is_there() {
  [[ -e $1 || ($1 == *@* && -e ${1%@*}) ]]
}

# is_setting WORD: whether it is key=value. A folder may be called lr=0.1, and no key holds a slash.
is_setting() {
  [[ $1 == ?*=* && ${1%%=*} != */* ]] && ! is_there "$1"
}

# parse_arguments NAME=DEFAULT ... -- ARGUMENT ...: sets the variables NAME from the positional arguments, in that
# order; key=value goes to SETTINGS, what begins with -- to OPTIONS.
parse_arguments() {
  local names=()
  SETTINGS=()
  OPTIONS=()
  while [[ $1 != -- ]]; do
    names+=("${1%%=*}")
    unset "${1%%=*}"  # also takes an inherited variable of that name out of the environment of the run
    printf -v "${1%%=*}" %s "${1#*=}"
    shift
  done
  shift
  while (($#)); do
    case "$1" in
      -h | --help)
        show_launcher_help
        exit 0
        ;;
      --output | --split)
        (($# > 1)) || die "$1 needs a value"
        OPTIONS+=("$1" "$2")
        shift
        ;;
      --*) OPTIONS+=("$1") ;;
      *)
        if is_setting "$1"; then
          SETTINGS+=("$1")
        else
          ((${#names[@]})) || die "one argument too many: '$1'; --help shows the usage"
          [[ $1 == - || -z $1 ]] || printf -v "${names[0]}" %s "$1"
          names=("${names[@]:1}")
        fi
        ;;
    esac
    shift
  done
}

# existing_path NAME: dies unless the path in the variable NAME exists (of RUN@best the run) or is empty; expands a ~ that
# the shell left.
existing_path() {
  local path="${!1}"
  [[ $path == \~/* ]] && path="$HOME/${path:2}"
  [[ -z $path ]] || is_there "$path" || die "$1 '$path' does not exist; --help shows the usage"
  printf -v "$1" %s "$path"
}

# existing_checkpoint NAME: as existing_path, but a bundled checkpoint may also be named as in every command.
existing_checkpoint() {
  local name="${!1#pretrained/}"
  [[ -n $name && $name != */* && ! -e ${!1} && -d $ROOT/pretrained/$name ]] || existing_path "$1"
}

# Checks DEVICE_TARGET, chooses PYTHON and names the log: what every launcher needs before it starts a run.
prepare_launch() {
  DEVICE_TARGET="${DEVICE_TARGET:-Ascend}"
  [[ $DEVICE_TARGET =~ ^(CPU|GPU|Ascend)$ ]] || die "DEVICE_TARGET is '$DEVICE_TARGET': CPU, GPU or Ascend"
  local wanted="${PYTHON:-$ROOT/.venv/bin/python}"
  [[ -n ${PYTHON:-} || -x $wanted ]] || wanted="python"
  PYTHON="$(command -v "$wanted")" || die "no Python at '$wanted': set PYTHON, or make .venv with scripts/run_demo.sh"
  [[ $PYTHON == /* ]] || PYTHON="$PWD/$PYTHON"
  if [[ $DEVICE_TARGET == GPU ]]; then
    # shellcheck source=scripts/gpu_env.sh
    source "$ROOT/scripts/gpu_env.sh" || exit 2
  fi
  LOG="$PWD/runs/logs/${SCRIPT%.sh}-$(date +%Y%m%d-%H%M%S)-$$"  # two launches may share a second
  export PYTHONUNBUFFERED=1  # prints and progress bars reach the log in order
}

# launch COMMAND ...: shows and keeps the output; a failure names the log and keeps its exit code. What ends the launcher
# (TERM, INT, HUP) is passed on to the command, and its end is awaited. A second signal kills it, unless it is SUPERVISED
# and sees to that itself.
launch() {
  local code=0 child printer signal pipes stopped signals=0
  mkdir -p "${LOG%/*}"
  printf '+%s\n' "$(printf ' %q' "$@")"
  pipes="$(mktemp -d)"  # not every file system of logs knows pipes
  mkfifo "$pipes/output"
  (trap '' INT TERM HUP; exec tee -i "$LOG.log") < "$pipes/output" &
  printer=$!
  set -m  # a process group of its own, whose members are not deaf to INT as background commands else are
  "$@" > "$pipes/output" 2>&1 < /dev/null &
  child=$!
  set +m
  for signal in INT TERM HUP; do
    # shellcheck disable=SC2064 # the numbers of now
    trap "stopped=1; pass_on $signal $child" "$signal"
  done
  while
    stopped="" code=0
    wait "$child" 2> /dev/null || code=$?
    [[ -n $stopped ]]  # a signal ended the waiting, not the command
  do :; done
  trap - INT TERM HUP
  wait "$printer" || true
  rm -rf "$pipes"
  ((code == 0)) && return
  if ((code == 75)); then
    printf '%s: stopped, --resume goes on; its output is in %s\n' "$SCRIPT" "$LOG.log" >&2
    return "$code"
  fi
  printf '%s: failed with exit code %s; its output is in %s\n' "$SCRIPT" "$code" "$LOG.log" >&2
  return "$code"
}

# pass_on SIGNAL PROCESS: the end of launch's command; signals counts them.
pass_on() {
  local signal="$1"
  signals=$((signals + 1))
  ((signals == 1)) || [[ -n ${SUPERVISED:-} ]] || signal=KILL
  kill -"$signal" -- -"$2" 2> /dev/null || true
}

# train: one process with CONFIG, from PRETRAINED_MODEL where that is given.
train() {
  existing_path CONFIG
  existing_checkpoint PRETRAINED_MODEL
  prepare_launch
  launch "$PYTHON" "$ROOT/train.py" --config "$CONFIG" ${OPTIONS[@]+"${OPTIONS[@]}"} "runtime.device=$DEVICE_TARGET" \
    ${PRETRAINED_MODEL:+"train.init_from=$PRETRAINED_MODEL"} ${SETTINGS[@]+"${SETTINGS[@]}"}
}

# evaluate DEFAULT BUNDLED: CONFIG on CHECKPOINT; without one on the run that CONFIG describes. Where none of the two is
# given and DEFAULT was never trained, it is the bundled checkpoint of that name.
evaluate() {
  local default="$1" bundled="$ROOT/pretrained/$2" run full
  existing_path CONFIG
  existing_checkpoint CHECKPOINT
  prepare_launch
  if [[ -z $CHECKPOINT ]]; then
    run="$(run_folder "${CONFIG:-$default}" ${SETTINGS[@]+"${SETTINGS[@]}"})" || exit 2
    CHECKPOINT="$run"
    if [[ ! -e $run/checkpoints ]]; then
      CHECKPOINT="$bundled"
      [[ -z $CONFIG ]] || die "CONFIG '$CONFIG' is not trained: no checkpoint in '$run'. Train it, or name a CHECKPOINT" \
        "(the bundled one is $CHECKPOINT)"
      full="${default/%demo.yaml/demo_full.yaml}"  # of the world that the bundled checkpoint was trained on
      [[ ! -e $full ]] || default="$full"
    fi
    printf '%s: CHECKPOINT is %s\n' "$SCRIPT" "$CHECKPOINT"
  fi
  launch "$PYTHON" "$ROOT/eval.py" --config "${CONFIG:-$default}" --checkpoint "$CHECKPOINT" ${OPTIONS[@]+"${OPTIONS[@]}"} \
    "runtime.device=$DEVICE_TARGET" ${SETTINGS[@]+"${SETTINGS[@]}"}
}

# run_folder CONFIG SETTING ...: prints where that configuration trains into.
run_folder() {
  "$PYTHON" -c '
import sys
sys.path.insert(0, sys.argv[1])
from src.config import ConfigError, load_config
try:
    print(load_config(sys.argv[2], sys.argv[3:]).train.output)
except ConfigError as error:
    sys.exit("error: " + str(error))
' "$ROOT" "$@"
}

# train_distributed: as train, in RANK_SIZE processes that msrun starts. tools/launch_ranks.py looks after them.
train_distributed() {
  local port cluster=() variable
  existing_path CONFIG
  existing_path RANK_TABLE_FILE
  existing_checkpoint PRETRAINED_MODEL
  prepare_launch
  LOG+="-${HOSTNAME:-here}"  # machines may share the folder
  RANK_SIZE="${RANK_SIZE:-${WORKER_NUM:-}}"
  for variable in RANK_SIZE:1 NNODES:1 NODE_RANK:0; do whole_number "${variable%:*}" "${variable#*:}"; done
  [[ $DEVICE_TARGET != CPU ]] || RANK_SIZE="${RANK_SIZE:-$((2 * ${NNODES:-1}))}"
  [[ -z $RANK_TABLE_FILE ]] || check_rank_table
  port="$(scheduler_port)" || exit
  cluster=("--master_port=$port" "--log_dir=$LOG" ${RANK_TABLE_FILE:+"--rank_table_file=$RANK_TABLE_FILE"}
    ${RANK_SIZE:+"--worker_num=$RANK_SIZE"} ${NNODES:+"--nodes=$NNODES"} ${NODE_RANK:+"--node_rank=$NODE_RANK"}
    ${MASTER_ADDR:+"--master_addr=$MASTER_ADDR"})
  [[ -n ${MASTER_PORT:-} ]] || cluster+=(--any_port)
  # one line here instead of one from every rank
  [[ $DEVICE_TARGET == CPU ]] || "$PYTHON" "$ROOT/tools/check_device.py" "$DEVICE_TARGET" --quick || exit
  SUPERVISED=1 launch "$PYTHON" "$ROOT/tools/launch_ranks.py" "${cluster[@]}" \
    "$ROOT/train.py" --config "$CONFIG" ${OPTIONS[@]+"${OPTIONS[@]}"} "runtime.device=$DEVICE_TARGET" \
    runtime.distributed=true ${PRETRAINED_MODEL:+"train.init_from=$PRETRAINED_MODEL"} ${SETTINGS[@]+"${SETTINGS[@]}"}
}

# whole_number NAME LEAST: dies unless the variable NAME is empty or a number that is large enough.
whole_number() {
  local value="${!1:-}"
  [[ -z $value ]] || { [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] && ((value >= $2)); } ||
    die "$1 is '$value': a whole number, $2 or more; --help shows the usage"
}

# Every format of a rank table has one rank_id for a rank; tools/launch_ranks.py reads the rest.
check_rank_table() {
  local ranks
  [[ $DEVICE_TARGET == Ascend ]] || die "RANK_TABLE_FILE is for Ascend; DEVICE_TARGET is $DEVICE_TARGET"
  ranks="$( (grep -o '"rank_id"' "$RANK_TABLE_FILE" || true) | wc -l)"
  [[ -z $RANK_SIZE ]] || ((ranks == RANK_SIZE)) ||
    die "RANK_TABLE_FILE '$RANK_TABLE_FILE' names $ranks ranks, RANK_SIZE is $RANK_SIZE: leave RANK_SIZE out"
}

# Prints MASTER_PORT, which must be free on the first machine, or a free port. The search begins at random: msrun takes its
# port seconds later, when another launch may have looked, too. Ports from 32768 on are those that Linux gives to outgoing
# connections.
scheduler_port() {
  local port="${MASTER_PORT:-$((10000 + RANDOM % 20000))}"
  if [[ ! $port =~ ^[1-9][0-9]{3,4}$ ]] || ((port < 1024 || port > 65535)); then
    die "MASTER_PORT is '$port': a port from 1024 to 65535"
  fi
  while ((${NODE_RANK:-0} == 0)) && port_taken "$port"; do
    [[ -z ${MASTER_PORT:-} ]] || die "MASTER_PORT $port is taken: choose another, or leave it out"
    port=$((port + 1))
  done
  echo "$port"
}

port_taken() {
  (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null
}

# install_into_venv REQUIREMENTS: makes .venv and installs the pinned packages, unless these very pins are installed.
# Sets VENV_PYTHON.
install_into_venv() {
  local base stamp="$ROOT/.venv/$1.sha256" wanted
  VENV_PYTHON="$ROOT/.venv/bin/python"
  wanted="$(cd "$ROOT" && cat requirements.txt "$1" | sha256sum)"
  if [[ -x $VENV_PYTHON && -e $stamp && $(< "$stamp") == "$wanted" ]]; then
    return
  fi
  if ! supported "$VENV_PYTHON" || ! "$VENV_PYTHON" -m pip --version > /dev/null 2>&1; then
    base="$(base_python)" || exit
    echo "Making .venv with $("$base" --version)"
    "$base" -m venv --clear "$ROOT/.venv" || die "$base cannot make .venv: see the message above"
  fi
  echo "Installing $1 into .venv: once, a minute or two and 3 to 4 GB of disk"
  "$VENV_PYTHON" -m pip install --disable-pip-version-check --quiet -r "$ROOT/$1" ||
    die "pip could not install $1: see the message above"
  echo "$wanted" > "$stamp"
}

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null
}

# Prints PYTHON, or the first Python on PATH that MindSpore has a wheel for.
base_python() {
  local name
  if [[ -n ${PYTHON:-} ]]; then
    supported "$PYTHON" || die "PYTHON='$PYTHON' is not a Python 3.10, 3.11 or 3.12, which MindSpore needs"
    echo "$PYTHON"
    return
  fi
  for name in python3.11 python3.12 python3.10 python3 python; do
    if supported "$name"; then
      echo "$name"
      return
    fi
  done
  die "no Python 3.10, 3.11 or 3.12 on PATH: install one, or name it with PYTHON=/path/to/python"
}
