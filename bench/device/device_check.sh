#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one command, offline, in under 8 minutes:
#
#   bash bench/device/device_check.sh             results to bench/results/<device>/, or to $OUT
#   bash bench/device/device_check.sh goals bench only these steps (after the install): for a second call
#
# Steps: graphs goals tests sanitizer train bench. Needs Python with a CUDA torch, triton, pytest, hypothesis, ninja,
# setuptools; nvcc for the CUDA library. Installs into a folder of its own. Every step has a time limit, and its failure
# does not stop the next; nor does a module that is missing. The short table comes last; at most 8 files are
# written, every step's output in log.txt. The card's settings are never touched.
set -u
cd "$(dirname "$0")/../.." || exit 2
PYTHON=${PYTHON:-python3}
# KIND: what the steps run on. `cpu` is for trying the script where there is no GPU; no figure of it means anything.
KIND=${KIND:-cuda}
DEVICE=$KIND
if [ "$KIND" = cuda ]; then
  DEVICE=$($PYTHON -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "")')
  # Only this card: the whole list would triple the build.
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
fi
if [ -z "$DEVICE" ]; then
  echo "device_check: torch sees no GPU" >&2
  exit 2
fi
STEPS=" ${*:-graphs goals tests sanitizer train bench} "
OUT=${OUT:-bench/results/$DEVICE}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
mkdir "$WORK/parts"
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$WORK/site" TORCHINDUCTOR_CACHE_DIR="$WORK/inductor" TRITON_CACHE_DIR="$WORK/triton" PYTHONUNBUFFERED=1
# Else the bench starts itself anew for a malloc of its own, which times on a GPU do not need.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-}
STARTED=$SECONDS
# Seconds after which no step starts any more, and none that runs goes on.
DEADLINE=${DEADLINE:-455}
: >"$OUT/log.txt"
: >"$OUT/summary.txt"

note() { echo "$1" | tee -a "$OUT/summary.txt"; }

# step NAME LIMIT COMMAND...: runs it, its output at the end of $OUT/log.txt; a line of the summary at once
step() {
  local name=$1 limit=$2 began=$SECONDS code left word=ok
  shift 2
  left=$((DEADLINE - SECONDS + STARTED))
  if [ $left -lt 5 ]; then
    note "$(printf '%-22s %s' "$name" "not started: no time left")"
    return 1
  fi
  [ "$limit" -gt $left ] && limit=$left
  timeout -k 5 "$limit" "$@" >"$WORK/step.log" 2>&1
  code=$?
  [ $code -eq 0 ] || word="FAILED ($code)"
  [ $code -eq 124 ] || [ $code -eq 137 ] && word="TIME LIMIT (${limit}s)"
  {
    echo "=== $name: $word, $((SECONDS - began)) s: $*"
    tail -c 1500000 "$WORK/step.log"
  } >>"$OUT/log.txt"
  note "$(printf '%-22s %-18s %4ss  %s' "$name" "$word" $((SECONDS - began)) "$(tail -n 1 "$WORK/step.log" | cut -c1-80)")"
  return $code
}

wanted() { [[ $STEPS == *" $1 "* ]]; }

note "device check: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "$DEVICE"), $(nvcc --version 2>/dev/null | grep -o 'release [0-9.]*' || echo 'no nvcc')"

# The package, as a user installs it; --target keeps the machine's own packages as they are. Where nvcc fails the rest
# is still worth measuring, and where no compiler works Triton and the reference are.
PIP="$PYTHON -m pip install --no-build-isolation --no-deps --no-index --target $WORK/site"
# shellcheck disable=SC2086
step install 240 $PIP . || step install_without_cuda 60 env FASTMIX_CUDA=0 $PIP . || {
  mkdir -p "$WORK/site"
  cp -r fastmix "$WORK/site/" && cp -r kernels bench "$WORK/site/fastmix/" && rm -f "$WORK"/site/fastmix/*.so
}
# Tests run outside the checkout, so that the installed package is the one that is tested.
cp -r tests "$WORK/"
cp pyproject.toml "$WORK/"
cd "$WORK" || exit 2
step info 30 $PYTHON -m fastmix info
if wanted graphs && [ "$KIND" = cuda ]; then
  step graphs 60 $PYTHON -m fastmix.bench.device.graphs --json "$WORK/graphs.json"
fi
if wanted goals; then
  step goals 150 $PYTHON -m fastmix.bench.device.goals --device "$KIND" --json "$OUT/goals.json" --budget 100
fi
if wanted tests; then
  if $PYTHON -c "import pytest, hypothesis" 2>/dev/null; then
    step tests 130 $PYTHON -m pytest \
      tests/ops/test_{soft_target,blend,paste,patch_mix,saliency,rmix,covariance,isda,isda_consistency,view,crop}.py \
      --device "$KIND" -q -m "not slow" \
      -k "not simt" -p no:cacheprovider --tb=short
    grep -E "^(FAILED|ERROR)" "$WORK/step.log" | cut -c1-150 | head -n 12 | tee -a "$OUT/summary.txt"
  else
    note "tests                  not run: pytest or hypothesis is not on this machine"
  fi
fi
if wanted sanitizer && [ "$KIND" = cuda ]; then
  if command -v compute-sanitizer >/dev/null; then
    step memcheck 40 compute-sanitizer --tool memcheck --error-exitcode 9 $PYTHON -m fastmix.bench.device.sanitizer --small
    step racecheck 40 compute-sanitizer --tool racecheck --error-exitcode 9 $PYTHON -m fastmix.bench.device.sanitizer --small
  else
    note "compute-sanitizer      not on this machine"
  fi
fi
if wanted train; then
  # Real digits where scikit-learn is there, else coloured squares in a folder.
  DATA="--data digits"
  if ! $PYTHON -c "import sklearn" 2>/dev/null; then
    $PYTHON -m fastmix.bench.device.images "$WORK/images" && DATA="--data folder --root $WORK/images --image-size 32"
  fi
  # shellcheck disable=SC2086
  step train 40 $PYTHON -m fastmix train $DATA --method rmix --epochs 3 --device "$KIND" --out "$WORK/run"
fi
if wanted bench; then
  # An operator at a time: one that fails, or that the time does not reach, costs no other.
  for op in patch_mix saliency soft_target paste blend view isda covariance mixers; do
    step "bench_$op" 60 $PYTHON -m fastmix bench --device "$KIND" --op $op --seconds 0.3 --no-plots --json "$WORK/parts/$op.json"
  done
  step pictures 30 $PYTHON -m fastmix.bench.device.join "$WORK/parts" "$OUT/bench.json"
fi
note ""
if wanted goals; then
  $PYTHON -m fastmix.bench.device.goals --show "$OUT/goals.json" 2>&1 | tee -a "$OUT/summary.txt"
fi
if wanted graphs && [ -f "$WORK/graphs.json" ]; then
  $PYTHON -m fastmix.bench.device.graphs --show "$WORK/graphs.json" 2>&1 | tee -a "$OUT/summary.txt"
fi
note "$((SECONDS - STARTED)) s"
