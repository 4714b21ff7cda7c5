#!/usr/bin/env bash
# Compares adapters with HF PEFT in both directions, in an environment of its own that pip makes once; where it cannot, a line
# says so. The program is the one that the tests compiled.
set -euo pipefail
cd "$(dirname "$0")/.."

environment="${GEMMA_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/gemma-tests}/peft"
program="${CARGO_TARGET_DIR:-target}/release/gemma"
python="${PYTHON:-python3}"
if ! "$environment/bin/python" -c 'import peft, torch, transformers' 2>/dev/null; then
    if ! "$python" -m venv "$environment" 2>/dev/null \
        || ! "$environment/bin/pip" install -q torch transformers peft 2>/dev/null; then
        echo "skipped: pip cannot install torch, transformers and peft"
        exit 0
    fi
fi
"$environment/bin/python" tests/peft.py "$program"
