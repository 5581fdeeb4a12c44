#!/bin/sh
# Usage: generate_stubs.sh VENV OUT
# Generate OUT/tallystick/** from protos/ with the generator pinned in VENV: messages, stubs, and types for both.
set -eu
# The mypy plugin's Python has no sys.stdin at all where ours is closed, as under some CI runners.
exec </dev/null
venv=$1 out=$2
protos=$(find protos -name '*.proto' | LC_ALL=C sort)

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
# The plugins are looked up on PATH.
PATH="$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc --proto_path=protos \
    --python_out="$fresh" --grpc_python_out="$fresh" --mypy_out=quiet:"$fresh" --mypy_grpc_out=quiet:"$fresh" $protos

# Only now, when nothing can fail any more, the old ones go: those of a deleted proto would be published for ever.
mkdir -p "$out/tallystick"
find "$out/tallystick" \( -name '*_pb2*.py' -o -name '*_pb2*.pyi' \) -delete
cp -R "$fresh/tallystick/." "$out/tallystick/"

# An ordinary package at every level: namespace packages would let another distribution put files among ours.
find "$out/tallystick" -type d ! -name __pycache__ | while read -r directory; do
    [ -e "$directory/__init__.py" ] || : > "$directory/__init__.py"
done
