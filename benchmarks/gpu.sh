#!/usr/bin/env bash
# Everything that a GPU is needed for, the most important first: which packages are there, the tests that differ on CUDA,
# the table of all methods at batch 64, compiled steps, the kernels of a step. Needs no network.
#
#     bash benchmarks/gpu.sh OUT            # GPU_SECONDS=400 of wall clock in all; PYTHON=python3
#     bash benchmarks/gpu.sh OUT --cpu      # a try of every part with tiny models on a CPU, 900 seconds at most
#
# Every part writes OUT/PART.json as it measures, has a time of its own, and is ended when that is over; what it leaves is
# given to the parts that follow. `python benchmarks/tables.py OUT` prints what was written.
#
# Estimates for an H100 with 16 cores, in seconds, with 15 of every part for its imports:
#     packages  10   no torch
#     tests    110   15 processes; 32 compilations of 15 to 40 s each are most of it
#     steps    125   AST 50 (13 methods x 22 steps of 0.1 to 0.25 s), wav2vec2 20, Whisper 5 s 10, 30 s 25
#     compile   90   10 models at once, 40 to 60 s each, then 2 s of steps a model
#     profile   25
set -u

OUT=${1:?Usage: bash benchmarks/gpu.sh OUT [--cpu]}
MODE=${2:-}
PYTHON=${PYTHON:-python3}
SECONDS=0
BUDGET=${GPU_SECONDS:-400}
SLOWER=1
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
rm -f "$OUT/tests.jsonl"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_COMPILE_THREADS=2 OMP_NUM_THREADS=4  # many processes compile at once

case $MODE in
    "") DEVICE=cuda; TINY=() ;;
    --cpu) DEVICE=cpu; TINY=(--tiny --device cpu); SLOWER=4; BUDGET=${GPU_SECONDS:-900}; export OMP_NUM_THREADS=1 ;;
    *) echo "The second argument may be --cpu, got $MODE." >&2; exit 2 ;;
esac

# part NAME SECONDS RESERVE COMMAND...: run a command, with UNTIL for the time when it should be over: after SECONDS at most,
# and without the RESERVE that the parts behind it should have.
part() {
    local name=$1 most=$(($2 * SLOWER)) limit=$((BUDGET - SECONDS - $3)); shift 3
    [ "$limit" -gt "$most" ] && limit=$most
    if [ "$limit" -lt 20 ]; then echo "== $name: left out, $((BUDGET - SECONDS)) s are left"; return; fi
    echo "== $name: at most $limit s, $SECONDS s have passed"
    # The part ends by itself, as its own clock says; the signal is for what hangs.
    timeout -k 5 "$limit" "${@//UNTIL/$(($(date +%s) + limit - 10))}" </dev/null
    local code=$?
    [ "$code" -eq 0 ] || echo "== $name: exit code $code$([ "$code" -ge 124 ] && echo ', it ran out of time')"
}

tests() {
    local workers=(-n "${GPU_WORKERS:-14}" --dist load --maxschedchunk 1) limit=() chosen=()
    "$PYTHON" -c "import pytest_timeout" 2>/dev/null && limit=(--timeout 100)
    # The compilations take longest, and so come last.
    for file in tests/cuda/test_*.py; do [ "$file" = tests/cuda/test_compile.py ] || chosen+=("$file"); done
    chosen+=(tests/cuda/test_compile.py)
    [ "$DEVICE" = cpu ] && workers=(-p no:xdist) && chosen=(tests/cuda/test_saving.py -k "ipet and wav2vec2")
    TEST_DEVICE=$DEVICE TEST_RESULTS="$OUT/tests.jsonl" part tests 150 220 \
        "$PYTHON" -m pytest "${workers[@]}" ${limit[@]+"${limit[@]}"} --no-header --tb=short -r fE "${chosen[@]}"
}

{
    (cd benchmarks && part packages 40 0 "$PYTHON" -m benchmarking.packages "$OUT/packages.json")
    tests
    part steps 170 110 "$PYTHON" benchmarks/gpu.py steps --output_dir "$OUT" --until UNTIL ${TINY[@]+"${TINY[@]}"}
    BACKEND=inductor; [ "$DEVICE" = cpu ] && BACKEND=aot_eager
    part compile 110 25 "$PYTHON" benchmarks/gpu.py compile --output_dir "$OUT" --until UNTIL --backend "$BACKEND" \
        ${TINY[@]+"${TINY[@]}"}
    part profile 60 0 "$PYTHON" benchmarks/gpu.py profile --output_dir "$OUT" ${TINY[@]+"${TINY[@]}"}
    echo "== $SECONDS s"
} 2>&1 | tee "$OUT/gpu.log"
timeout -k 5 30 "$PYTHON" benchmarks/tables.py "$OUT" | tee "$OUT/gpu.md"
