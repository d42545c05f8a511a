#!/usr/bin/env bash
# All checks and measurements that need a GPU, for a machine with one and without a network:
#   bash benchmarks/check_gpu.sh FOLDER
# Needs Python with fastgru's requirements, numba-cuda, CuPy, PyTorch and pytest. Takes some seven
# minutes; each part writes its log into FOLDER, and a part that fails does not stop the others.
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

small='test_any_strides or test_padding or test_resident_weights'
part config 60 python -c 'import fastgru; fastgru.show_config()'
part tests 150 python -m pytest -p no:cacheprovider -q -m gpu tests
part memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 \
    python -m pytest -p no:cacheprovider -q -x -m gpu -k "$small" tests/test_cupy.py
part racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 \
    python -m pytest -p no:cacheprovider -q -x -m gpu -k test_resident_weights tests/test_cupy.py
part compare 150 python benchmarks/compare_peers.py --gpu --rounds 3 --json "$folder/gpu.json"
exit "$failed"
