#!/usr/bin/env bash
# The C library and the Python package: built, then tested from outside. What a machine has no tools for is left out, with a
# line that says so. Builds into CARGO_TARGET_DIR, with the versions and the profile of the main workspace.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_INCREMENTAL=0
CARGO_TARGET_DIR="$(mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)"
export CARGO_TARGET_DIR
jobs="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
profile="$CARGO_TARGET_DIR/bindings-profile.toml"
sed -n '/^\[profile/,$p' Cargo.toml >"$profile"
cp Cargo.lock bindings/Cargo.lock

python="${PYTHON:-python3}"

skipped() { printf 'skipped: %s\n' "$1"; }

c_library() { # the C library, shared and static: an example and a program of checks
    local library="$CARGO_TARGET_DIR/release" flags=(-std=c11 -Wall -Wextra -Werror -I bindings/c/include) said
    # both packages at once where there is Python: alone, the C library has fewer features of `syn`, the parser below every
    # derive macro, and Burn would be compiled a second time for Python
    local manifest=bindings/c/Cargo.toml
    if command -v "$python" >/dev/null 2>&1; then
        manifest=bindings/Cargo.toml
    fi
    # as maturin sets it
    PYO3_BUILD_EXTENSION_MODULE=1 cargo build -j "$jobs" --release --config "$profile" --manifest-path "$manifest"
    if ! command -v cc >/dev/null 2>&1; then
        skipped "no C compiler (cc), so the C library was built and not run"
        return 0
    fi
    cc "${flags[@]}" bindings/c/examples/generate.c -L "$library" -lgemma_c "-Wl,-rpath,$library" -o "$scratch/generate"
    said="$("$scratch/generate" "Once upon a time")"
    printf 'the example says: %s\n' "$said"
    [ "${#said}" -gt 40 ]
    if "$scratch/generate" "Once" ./no/such/model >/dev/null 2>"$scratch/error"; then
        echo "the example opened a model that does not exist" >&2
        return 1
    fi
    grep -q "no such" "$scratch/error"
    cc "${flags[@]}" bindings/c/tests/border.c "$library/libgemma_c.a" -lpthread -ldl -lm -o "$scratch/border"
    "$scratch/border" >"$scratch/border.txt" || { tail -5 "$scratch/border.txt"; return 1; }
    printf 'C: %d checks passed\n' "$(grep -c '^ok' "$scratch/border.txt")"
}

python_package() { # the wheel, in an environment of its own
    local venv="$scratch/venv"
    if ! command -v "$python" >/dev/null 2>&1; then
        skipped "no $python, so the Python package was not built"
        return 0
    fi
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        skipped "$python cannot make a virtual environment (on Debian: the package python3-venv)"
        return 0
    fi
    if ! "$venv/bin/pip" install --quiet --disable-pip-version-check "maturin>=1.9.4,<2" numpy; then
        skipped "pip cannot install maturin and numpy"
        return 0
    fi
    "$venv/bin/maturin" build -j "$jobs" --release --config "$profile" --manifest-path bindings/python/Cargo.toml \
        --interpreter "$venv/bin/python" --compatibility linux --out "$scratch/wheels"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$scratch"/wheels/*.whl
    local program="${GEMMA_BIN:-$CARGO_TARGET_DIR/release/gemma}"
    [ -x "$program" ] && export GEMMA_BIN="$program"
    "$venv/bin/python" bindings/python/tests/test_gemma.py
}

cargo fmt --all --manifest-path bindings/Cargo.toml --check
c_library
python_package
