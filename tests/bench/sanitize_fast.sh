#!/bin/sh
# The loops in C over mutated JPEGs and random pictures under AddressSanitizer and UndefinedBehaviorSanitizer; ends with an error at the first finding.
#   tests/bench/sanitize_fast.sh FOLDER_OF_SMALL_JPEGS [ROUNDS] [SEED]      (six mutated files per JPEG and round)
set -e
here=$(dirname "$0"); source=$here/../../stages/images/fast; built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
cc -g -O1 -std=gnu11 -fsanitize=address,undefined -fno-sanitize-recover=all -ffp-contract=off \
    "$here/sanitize_fast.c" "$source/jpeg_check.c" "$source/area.c" -lm -o "$built/sanitize"
"$built/sanitize" "${3:-1}" "${2:-100}" "$1"/*.jpg
