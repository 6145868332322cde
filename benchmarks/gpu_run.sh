#!/usr/bin/env bash
# One cell of Table 1 on one GPU, in calls of some minutes that each continue where the last one stopped.
#
#   bash benchmarks/gpu_run.sh [--minutes 9] [--state gpu_run] [flags of wgflow_rl.train]
#   while bash benchmarks/gpu_run.sh; [ $? -eq 75 ]; do :; done          # until it is finished
#
# Exit status: 0 finished, 75 call again. When the minutes are over, training writes a checkpoint and stops; 45 s later it
# is killed. Data, checkpoints and rows are in the folder --state. PYTHON is the interpreter, .venv's by default.
set -euo pipefail

minutes=9 state=gpu_run
while [[ ${1:-} == --minutes || ${1:-} == --state ]]; do
    [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
    declare "${1#--}=$2"
    shift 2
done
mkdir -p "$state"
state=$(cd "$state" && pwd)
cd "$(dirname "$0")/.."
export WGFLOW_DATA=$state/data PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

if [ -f "$state/run/config.json" ]; then
    set -- --resume "$state/run"
else # a later flag counts
    set -- --method dfp --preset paper --env cube-double-play-singletask-task2-v0 --device cuda --noise-on device --async-eval \
        --checkpoint-every 20000 "$@" --run-dir "$state/run"
fi
seconds=$(awk -v m="$minutes" 'BEGIN { print 60 * m }')
code=0
timeout --foreground --preserve-status --kill-after=45 "$seconds" "${PYTHON:-.venv/bin/python}" -m wgflow_rl.train "$@" || code=$?
case $code in
130 | 137 | 143) echo "call again" && exit 75 ;; # stopped with a checkpoint, killed, or stopped before it had a handler
*) exit "$code" ;;
esac
