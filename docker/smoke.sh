#!/usr/bin/env bash
# Builds the cpu image, starts the cluster of compose.yaml, runs a recipe on it as a job over a shared folder, checks the dataset,
# and removes it all. Needs docker with compose; nothing else is fetched once the image is built.
set -euo pipefail
cd "$(dirname "$0")/.."
export RAY_AUTH_TOKEN="${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}"
compose() { docker compose -f docker/compose.yaml "$@"; }
trap 'compose down --volumes' EXIT

compose up --build --wait
compose exec --user root head chown pairmill /data
compose exec head pairmill --version
compose exec head python -c "
from pathlib import Path
from stages.demo.world import build_world
build_world(Path('/data/world'), 300, base_url='http://localhost')
"
compose exec head ray job submit --address http://localhost:8265 -- \
    pairmill run caption_folder --set input.folder=/data/world/images --out /data/run --progress lines
compose exec head pairmill verify /data/run
compose exec head pairmill status /data/run
