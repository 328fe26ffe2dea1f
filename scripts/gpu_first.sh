#!/usr/bin/env bash
# What to do first on a machine with a GPU, in the order of what it tells: half an hour on an H100.
# usage: scripts/gpu_first.sh FOLDER [STEP...]     without steps all, in this order:
#   tests            the tests that need a GPU
#   single           a distilled run of CIFAR-10's size, with the default arithmetic
#   reproduce        the same run again, compared bit for bit
#   resume           a run that is killed in the middle, goes on, and is compared with one that wasn't
#   limit            training against a CUDA graph of the whole compiled step
#   distill teacher evaluate    a distilled epoch, a pass of ResNet50 at 224 px, an evaluation
#   command          the README's study, made smaller, from start to verdict; its teacher has torchvision's file format
#   workers          how many processes on one GPU see the most pictures per second
#   study            a whole study by the clock (STUDY="--trials 50 --epochs 16" for that of the goal)
#   peers            torchdistill, KD_Lib and a plain loop; needs a network to install them
# FOLDER gets STEP.txt (what was printed), STEP.json (figures), and summary.txt (how each step ended, and its seconds).
# A step that ended well isn't repeated. None takes more than ten minutes, so steps can be divided among several calls.
# PYTHON: the interpreter; PICTURES: a folder with train/<class>/* and test/<class>/*; DEVICE=cpu and OVERRIDES="model.name=...
# data.n_train=..." try the script out. Further words for benchmarks: LIMIT, DISTILL, TEACHER, EVALUATE, WORKERS, STUDY, PEERS.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
all=(tests single reproduce resume limit distill teacher evaluate command workers study peers)
[ $# -gt 0 ] || set -- "${all[@]}"

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
device=${DEVICE:-cuda}
read -ra overrides <<<"${OVERRIDES:-}"
export PYTHONUNBUFFERED=1 KDSWEEP_HOME=$out/home
mkdir -p "$KDSWEEP_HOME"

# The pictures do not decide how long anything takes, so made-up ones do where no folder is named.
if [ -n "${PICTURES:-}" ]; then
    data=(data=image_folder "data.root=$PICTURES" data.val_size=5000)
else
    data=(data=synthetic data.image_size=32 data.n_classes=10 data.n_train=50000 data.val_size=5000 data.n_test=10000)
    data+=(data.padding=4 data.flip=true)
fi
data+=("device=$device")

kdsweep() { "$python" -m kdsweep.train "$@"; }
reproduced() { "$python" -m kdsweep.commands.reproduce "$@"; }
# Ten epochs, so that there is time to kill it, and a checkpoint after each; compiled as in a study.
distilled() {
    kdsweep experiment=distill "${data[@]}" teacher.network.weights=null epochs=10 n_passes=2 checkpoint_share=1 \
        compiled="$([ "$device" = cpu ] && echo false || echo true)" "${overrides[@]}" "$@"
}
benchmark() {
    local name=$1 words
    shift
    read -ra words <<<"$*"
    "$python" scripts/benchmark.py "$name" --device "$device" --json "$out/$name.json" "${words[@]}"
}

step_tests() {
    grep -rl "cuda" tests --include="test_*.py" | xargs grep -L "import.* given" | # such machines lack hypothesis
        xargs "$python" -m pytest -p no:cacheprovider -q -rfE -k "gpu or cuda"
}
step_single() { distilled seed=0 "hydra.run.dir=$out/single"; }
step_reproduce() { reproduced "$out/single"; }
step_resume() {
    local run="$out/resumed" killed=false
    # Its own cache, so that the first checkpoint that appears is its own.
    distilled seed=1 "hydra.run.dir=$run" "paths.cache=$out/resumed-cache" &
    local pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if compgen -G "$out/resumed-cache/checkpoints/*/*/*.safetensors" >/dev/null; then
            # The command runs in a subshell: the process that trains is its child.
            kill -KILL $(pgrep -P "$pid") "$pid" 2>/dev/null && killed=true
            break
        fi
        sleep 0.2
    done
    wait "$pid" 2>/dev/null
    $killed || { echo "it ended before it could be killed"; return 1; }
    echo "killed; it goes on:"
    distilled seed=1 "hydra.run.dir=$run" "paths.cache=$out/resumed-cache" resume=true && reproduced "$run"
}
step_command() {
    "$python" -c "import sys, torch, torchvision; torch.save(torchvision.models.resnet50().state_dict(), sys.argv[1])" \
        "$out/resnet50.pth" &&
        kdsweep sweep=alpha_tau "${data[@]}" "teacher.network.weights=$out/resnet50.pth" epochs=6 sweep.n_trials=8 \
            sweep.baseline_seeds=2 sweep.confirm_seeds=3 "${overrides[@]}"
}
step_limit() { benchmark limit --rounds 3 ${LIMIT:-}; }
step_distill() { benchmark distill --pictures 12800 --large 2048 --rounds 3 ${DISTILL:-}; }
step_teacher() { benchmark teacher --pictures 8192 --batch 256 --rounds 3 ${TEACHER:-}; }
step_evaluate() { benchmark evaluate --pictures 12800 --evaluated 10000 --rounds 3 ${EVALUATE:-}; }
step_workers() { benchmark workers --rounds 2 ${WORKERS:-}; }
step_study() { benchmark study ${STUDY:---trials 10 --epochs 8}; }
step_peers() { benchmark peers --rounds 3 ${PEERS:-}; }

# What a limit of time ends is a process group of its own; bash's functions come along by `export -f`.
export -f kdsweep reproduced distilled benchmark
for name in "${all[@]}"; do export -f "step_$name"; done
export python device out
export FIRST_DATA="${data[*]}" FIRST_OVERRIDES="${overrides[*]:-}"

failed=0
for name in "$@"; do
    grep -q "^$name ok" "$out/summary.txt" 2>/dev/null && continue
    declare -F "step_$name" >/dev/null || { echo "gpu_first: no step is called $name" >&2; exit 2; }
    start=$SECONDS
    timeout --kill-after 20 590 bash -uo pipefail -c \
        'read -ra data <<<"$FIRST_DATA"; read -ra overrides <<<"$FIRST_OVERRIDES"; "step_$1"' _ "$name" >"$out/$name.txt" 2>&1
    status=$?
    case $status in 0) word=ok ;; 124 | 137) word="out of time" ;; *) word="FAILED ($status)" ;; esac
    [ $status -eq 0 ] || failed=1
    echo "$name $word, $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    [ $status -eq 0 ] || tail -n 5 "$out/$name.txt" | cut -c 1-300
done
exit $failed
