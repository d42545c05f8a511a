#!/usr/bin/env bash
# All checks and measurements that need a GPU, for a machine with one and without a network:
#   bash benchmarks/check_gpu.sh FOLDER
# Needs Python with fastgru's requirements, numba-cuda, CuPy, PyTorch, pytest and hypothesis, and
# compute-sanitizer. Takes eight minutes at most; each part writes its log into FOLDER, and one that
# fails does not stop the others.
set -uo pipefail
folder=$(realpath -m "${1:?name a folder for the logs}")
mkdir -p "$folder"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

part() {  # name, limit in seconds, command
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1 || status=$?
    printf '%-12s exit status %d, %d s\n' "$name" "$status" "$((SECONDS - start))"
    [ "$status" -eq 0 ] || failed=1
}

part config 20 python -c 'import fastgru; fastgru.show_config()'
part tests 120 python -m pytest -p no:cacheprovider -q -m gpu tests
# Without CuPy's pool of memory, whose large pieces hide what is written beyond an array.
export FASTGRU_TEST_PLAIN_MEMORY=1
if command -v compute-sanitizer >/dev/null; then
    part memcheck 80 compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m pytest -p no:cacheprovider -q -x -m gpu tests/gpu \
        -k 'test_any_strides or test_padding or (test_resident or test_exchange or test_graphs or test_clusters) and not same_bits'
    part racecheck 50 compute-sanitizer --tool racecheck --error-exitcode 1 \
        python -m pytest -p no:cacheprovider -q -x -m gpu tests/gpu \
        -k '(test_resident or test_exchange or test_clusters) and not same_bits'
else
    echo "memcheck, racecheck: compute-sanitizer is not on the PATH"
    failed=1
fi
unset FASTGRU_TEST_PLAIN_MEMORY
part compare 130 python -m benchmarks.compare_peers --gpu --rounds 2 --json "$folder/gpu.json"
part loops 80 python -m benchmarks.compare_peers --gpu --loops --rounds 2 --json "$folder/loops.json"
exit "$failed"
