#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one command, offline, in under 8 minutes:
#
#   bash bench/device_check.sh            results to bench/results/<device>/, or to $OUT
#
# Needs Python with a CUDA torch, triton, pytest, hypothesis, ninja, setuptools; nvcc for the CUDA library. Installs into
# a folder of its own. Every step has a time limit, and its failure does not stop the next; the short table comes last.
# The card's settings are never touched.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DEVICE=$($PYTHON -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "")')
if [ -z "$DEVICE" ]; then
  echo "device_check: torch sees no GPU" >&2
  exit 2
fi
OUT=${OUT:-bench/results/$DEVICE}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export PYTHONPATH="$WORK/site" TORCHINDUCTOR_CACHE_DIR="$WORK/inductor" TRITON_CACHE_DIR="$WORK/triton"
# Only this card: the whole list would triple the build.
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
STARTED=$SECONDS
ROWS=()

# Seconds after which no step starts any more, and none that runs goes on.
DEADLINE=455

# step NAME LIMIT COMMAND...: runs it, its output in $OUT/NAME.log
step() {
  local name=$1 limit=$2 began=$SECONDS code left
  shift 2
  left=$((DEADLINE - SECONDS + STARTED))
  if [ $left -lt 5 ]; then
    ROWS+=("$(printf '%-22s %s' "$name" "not started: no time left")")
    return 1
  fi
  [ $limit -gt $left ] && limit=$left
  timeout -k 5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  local word=ok
  [ $code -eq 0 ] || word="FAILED ($code)"
  [ $code -eq 124 ] || [ $code -eq 137 ] && word="TIME LIMIT (${limit}s)"
  ROWS+=("$(printf '%-22s %-18s %4ss  %s' "$name" "$word" $((SECONDS - began)) "$(tail -n 1 "$OUT/$name.log" | cut -c1-80)")")
  return $code
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >"$OUT/device.txt" 2>/dev/null || echo "$DEVICE" >"$OUT/device.txt"
nvcc --version >>"$OUT/device.txt" 2>&1

# The package, as a user installs it; --target keeps the machine's own packages as they are. Where nvcc fails the rest
# is still worth measuring, and where no compiler works Triton and the reference are.
PIP="$PYTHON -m pip install --no-build-isolation --no-deps --no-index --target $WORK/site"
# shellcheck disable=SC2086
step install 150 $PIP . || step install_without_cuda 60 env FASTMIX_CUDA=0 $PIP . || {
  mkdir -p "$WORK/site"
  cp -r fastmix "$WORK/site/" && cp -r kernels "$WORK/site/fastmix/" && rm -f "$WORK"/site/fastmix/*.so
}
# Tests and bench run outside the checkout, so that the installed package is the one that is tested.
cp -r tests bench "$WORK/"
cp pyproject.toml "$WORK/"
cd "$WORK" || exit 2
step info 30 $PYTHON -m fastmix info
step graphs 45 $PYTHON -m bench.device_graphs
step times 60 $PYTHON -m bench.device_times --json "$OUT/times.json"
if $PYTHON -c "import pytest, hypothesis" 2>/dev/null; then
  step tests_cuda 130 $PYTHON -m pytest tests/test_soft_target.py tests/test_blend.py tests/test_paste.py \
    tests/test_patch_mix.py tests/test_saliency.py tests/test_rmix.py tests/test_covariance.py tests/test_isda.py \
    tests/test_isda_consistency.py --device cuda -q -m "not slow" -p no:cacheprovider
else
  ROWS+=("tests_cuda             pytest or hypothesis not on this machine")
fi
if command -v compute-sanitizer >/dev/null; then
  step memcheck 40 compute-sanitizer --tool memcheck --error-exitcode 9 $PYTHON -m bench.device_cases --small
  step racecheck 40 compute-sanitizer --tool racecheck --error-exitcode 9 $PYTHON -m bench.device_cases --small
else
  ROWS+=("compute-sanitizer      not on this machine")
fi
# Real digits where scikit-learn is there, else coloured squares in a folder.
DATA="--data digits"
if ! $PYTHON -c "import sklearn" 2>/dev/null; then
  $PYTHON -m bench.device_images "$WORK/images" && DATA="--data folder --root $WORK/images --image-size 32"
fi
# shellcheck disable=SC2086
step train 40 $PYTHON -m fastmix train $DATA --method rmix --epochs 3 --device cuda --out "$WORK/run"
# An operator at a time: what the time does not reach loses itself alone.
for op in patch_mix saliency soft_target paste blend isda covariance; do
  step "bench_$op" 60 $PYTHON -m bench --device cuda --op $op --seconds 0.3 --json "$OUT/bench_$op.json"
done

{
  echo
  echo "device check: $(head -n 1 "$OUT/device.txt"), $((SECONDS - STARTED)) s"
  printf '%s\n' "${ROWS[@]}"
  cat "$OUT/times.log" 2>/dev/null | grep -E "^(isda|rmix)"
  for op in patch_mix saliency soft_target paste blend isda covariance; do
    grep -E "^$op" "$OUT/bench_$op.log" 2>/dev/null | head -n 6
  done
} | tee "$OUT/summary.txt"
