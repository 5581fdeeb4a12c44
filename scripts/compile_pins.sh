#!/bin/sh
# Usage: compile_pins.sh [--upgrade]
# Compile requirements/*.in into pins that carry hashes and name no package index, for every platform and Python >= 3.11.
set -eu
workspace=$(mktemp -d)
trap 'rm -rf "$workspace"' EXIT
"${PYTHON:-python3}" -m venv "$workspace/venv"
"$workspace/venv/bin/pip" install --quiet --disable-pip-version-check uv

cd "$(dirname "$0")/../requirements"
compile() {
    "$workspace/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-header "$@"
}
# dev holds all the others but protos. They start from its pins, which uv keeps where it can, so no two files disagree.
compile "$@" dev.in --output-file dev.txt
for name in sandbox runtime; do
    cp dev.txt "$name.txt"
    compile "$name.in" --output-file "$name.txt"
done
compile "$@" protos.in --output-file protos.txt
