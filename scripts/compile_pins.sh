#!/bin/sh
# Usage: compile_pins.sh [--upgrade]
# Compile requirements/*.in into pins that carry hashes and name no package index (uv emits none unless told to), for
# every platform and Python >= 3.11.
set -eu
workspace=$(mktemp -d)
trap 'rm -rf "$workspace"' EXIT
"${PYTHON:-python3}" -m venv "$workspace/venv"
"$workspace/venv/bin/pip" install --quiet --disable-pip-version-check uv

cd "$(dirname "$0")/.."
# compile NAME [OPTION...]
compile() {
    name=requirements/$1
    shift
    "$workspace/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
        "$@" "$name.in" --output-file "$name.txt"
}
# dev holds all the others but protos. They start from its pins, which uv keeps where it can, so no two files disagree.
compile dev "$@"
for part in sandbox runtime; do
    cp requirements/dev.txt "requirements/$part.txt"
    compile "$part"
done
compile protos "$@"
