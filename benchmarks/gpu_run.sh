#!/usr/bin/env bash
# One cell of Table 1 on one GPU: the paper's million updates and million environment steps, in calls of some minutes.
#
#   bash benchmarks/gpu_run.sh                     # again and again, until it exits with 0; 75: time is up, call again
#   bash benchmarks/gpu_run.sh --seed 1 -- --precision mixed       # after --: flags of wgflow_rl.train
#   while bash benchmarks/gpu_run.sh; [ $? -eq 75 ]; do :; done
#
# First the table of update times (benchmarks/update_gpu.py), then the data on all cores, then training. Each call goes on
# where the last one stopped, however it did, and copies what is small to $OUT: eval.csv, train.csv, config.json, curve.png.
#
#   --minutes 9        of a call; what is running is then asked to stop, and has 45 s for its checkpoint
#   --state gpu_run    data, checkpoints: about 0.9 GB for cube-double, kept between calls; data that are gone are made again,
#                      bit for bit the same
#   --method, --env, --seed, --preset, --device     as for wgflow_rl.train: dfp, cube-double, 0, paper, cuda
#   --no-graph         call the operations of an update one by one, where they cannot be recorded as one CUDA graph
#   OUT=gpu_run_out    where the small files go
#   PYTHON=...         an interpreter with the packages; without it .venv's, which is set up if there is none: that needs a
#                      network, or PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels and what a machine with one has put there by
#                      python -m pip download -d wheels -c constraints.txt '.[rl]' hatchling editables
set -euo pipefail

minutes=9 state=gpu_run method=dfp env=cube-double-play-singletask-task2-v0 seed=0 preset=paper device=cuda graph=--graph
while [ $# -gt 0 ]; do
    case $1 in
    --minutes | --state | --method | --env | --seed | --preset | --device)
        [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
        declare "${1#--}=$2"
        shift 2
        ;;
    --no-graph)
        graph=$1
        shift
        ;;
    --)
        shift
        break
        ;;
    *)
        echo "error: $1 is unknown; flags of training go after --" >&2
        exit 2
        ;;
    esac
done

mkdir -p "$state" "${OUT:=gpu_run_out}"
state=$(cd "$state" && pwd) OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")/.."
run=$state/$method-$env-s$seed
deadline=$(($(date +%s) + $(awk -v m="$minutes" 'BEGIN { printf "%d", 60 * m }')))
export WGFLOW_DATA=$state/data PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

packages=(torch numpy scipy gymnasium mujoco ogbench tyro tqdm safetensors tensorboard matplotlib)
lacking() {
    "$PYTHON" - "${packages[@]}" <<'PY'
import importlib.util
import sys

print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PY
}

usable() { # says what is missing
    local missing
    missing=$(lacking)
    [ -z "$missing" ] || {
        echo "error: $PYTHON lacks $missing. Give another one as PYTHON=, or none to set up .venv." >&2
        return 1
    }
    [[ $device != cuda* ]] || "$PYTHON" - <<'PY'
import sys

import torch

if not torch.cuda.is_available():
    sys.exit(
        f"error: torch {torch.__version__} of {sys.executable} finds no CUDA device. On a machine with one, install torch "
        "for CUDA and see nvidia-smi; without one, try the same calls with --device cpu --preset laptop."
    )
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
PY
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    # Gone on with where an earlier call was ended in the middle of it: it may take longer than a call.
    [ -x "$PYTHON" ] && [ -z "$(lacking)" ] || EXTRAS=rl VENV=.venv PYTHON='' sh .ci/setup
fi

for_the_rest_of_the_time() {
    local left=$((deadline - $(date +%s)))
    [ "$left" -gt 0 ] || return 143
    timeout --foreground --preserve-status --signal=TERM --kill-after=45 "$left" "$@"
}

collect() {
    mkdir -p "$OUT/${run##*/}"
    for file in eval.csv train.csv config.json curve.png; do
        [ ! -f "$run/$file" ] || cp "$run/$file" "$OUT/${run##*/}/"
    done
    cp benchmarks/results/update_gpu.* "$OUT/" 2>/dev/null || true
}

left() { # how far training came, from its newest checkpoint and its clock
    "$PYTHON" - "$run" "$WGFLOW_DATA" <<'PY'
import csv
import json
import pathlib
import sys

run, data = map(pathlib.Path, sys.argv[1:])
steps = sorted(int(path.stem[5:]) for path in run.glob("checkpoints/step-*.safetensors"))
if not steps:
    print(f"no checkpoint yet; {len(list(data.glob('*/parts/*.npz')))} parts of data are made and not yet joined")
    sys.exit()
schedule = json.loads((run / "config.json").read_text())["settings"]["schedule"]
total = schedule["offline_steps"] + schedule["online_steps"]
with (run / "train.csv").open() as file:
    rows = [(int(row["step"]), float(row["wall_s"])) for row in csv.DictReader(file)]
speed = ""
if len(rows) > 1:
    (step, seconds), (before, then) = rows[-1], rows[-2]
    speed = f", lately {(seconds - then) / (step - before) * 1e3:.2f} ms a step"
print(f"step {steps[-1]} of {total}{speed}")
PY
}

usable
trap collect EXIT

# Tried once, and no reason not to train: its own message says what was wrong.
if [[ $device == cuda* && ! -e $state/table.tried && -f benchmarks/update_gpu.py ]]; then
    touch "$state/table.tried" # before: one that takes all its time must not take that of the next call too
    for_the_rest_of_the_time "$PYTHON" benchmarks/update_gpu.py || true
fi

processes=0 # that step environments while the GPU learns, and as many for evaluations; they change no result
[[ $device != cuda* ]] || processes=$(($(nproc) > 8 ? 8 : $(nproc) - 1))
where=(--device "$device" "$graph" --env-processes "$processes" --eval-processes "$((processes > 0))")
if [ -f "$run/config.json" ]; then
    set -- --resume "$run" "${where[@]}"
else # a later flag counts: a caller may ask for other checkpoints
    noise=cpu
    [[ $device != cuda* ]] || noise=device
    set -- --method "$method" --preset "$preset" --env "$env" --seed "$seed" "${where[@]}" --noise-on "$noise" --run-dir "$run" \
        --checkpoint-every 20000 "$@"
fi
code=0
for_the_rest_of_the_time "$PYTHON" -m wgflow_rl.train "$@" || code=$?
case $code in
0) echo "done: $OUT/${run##*/} is a cell of Table 1 (python -m wgflow_rl.report $OUT); it belongs into benchmarks/results/" ;;
130 | 137 | 143) # stopped with a checkpoint, killed, or stopped before there was anything to write
    left
    echo "call again"
    exit 75
    ;;
*) exit "$code" ;;
esac
