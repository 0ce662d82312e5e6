#!/usr/bin/env bash
# Correctness and speed on one GPU, in one command of at most ten minutes; see docs/gpu.md.
#
#   OUT=FOLDER benchmarks/gpu.sh [--step NAME ...] [--seconds N] [--scale tiny]
#
# Variables: OUT     folder of the results, ./build/gpu by default
#            SITE    folder with vLLM for PYTHONPATH; by default the interpreter's own vLLM
#            PYTHON  interpreter, python3 by default
# Needs no network, no pip and no installed plugin: the project is laid on PYTHONPATH with its entry points.
set -euo pipefail
cd "$(dirname "$0")/.."

export OUT="${OUT:-build/gpu}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
python="${PYTHON:-python3}"
plugin="$(mktemp -d "${TMPDIR:-/tmp}/vllm-prune-site-XXXXXX")"
trap 'rm -rf "$plugin"' EXIT

# What comes first on the path wins: the project, then SITE, then what the caller had.
"$python" benchmarks/gpu/plugin_site.py "$plugin/site" > /dev/null
export PYTHONPATH="$plugin/site${SITE:+:$SITE}${PYTHONPATH:+:$PYTHONPATH}"

status=0
"$python" -m benchmarks.gpu "$@" || status=$?
echo "results in $OUT, exit code $status"
exit "$status"
