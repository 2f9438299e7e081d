#!/bin/sh
# From an empty folder to the first report with the README's commands, no variable of Python or pairmill in the environment: seconds of each step, and in all.
# Run: sh tests/bench/fresh.sh [FOLDER, which must not exist]
set -e
from=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)/pairmill}
began=$(date +%s)
step() {
    start=$(date +%s)
    "$@" >>"$folder.log" 2>&1 || { tail -20 "$folder.log"; exit 1; }
    echo "$(($(date +%s) - start)) s  $*"
}
clean() { env -u VIRTUAL_ENV -u PYTHONPATH -u PAIRMILL_TEST_DATA -u CHROMIUM make -C "$folder" "$@"; }
step git clone -q "$from" "$folder"
step clean .uv/ready
step clean .venv/ready
step clean demo
ls -l "$folder/runs/demo/curated/report.html"
echo "$(($(date +%s) - began)) s  in all"
