#!/bin/sh
# Usage: check_stubs.sh VENV
# Fail when the committed stubs are not what protos/ generates.
set -eu
generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
"$(dirname "$0")/generate_stubs.sh" "$1" "$generated"

# Only generated files are compared: the package holds hand-written ones too.
list() { (cd "$1" && find tallystick -name '*_pb2*.py' -o -name '*_pb2*.pyi' | LC_ALL=C sort); }
list . > "$generated/committed.txt"
list "$generated" > "$generated/fresh.txt"
status=0
diff -u "$generated/committed.txt" "$generated/fresh.txt" || status=1
while read -r file; do
    cmp -s "$file" "$generated/$file" || { echo "$file differs"; status=1; }
done < "$generated/fresh.txt"
if [ "$status" -ne 0 ]; then
    echo "The stubs are not in sync with protos/: run make protos and commit the result." >&2
    exit 1
fi
echo "stubs: in sync with protos/"
