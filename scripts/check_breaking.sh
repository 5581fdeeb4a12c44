#!/bin/sh
# Usage: check_breaking.sh BUF
# Compare the protos with the last release, or before the first one with main: published contracts only ever grow.
set -eu
buf=$1

if ! git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
    echo "buf breaking: there is no commit yet to compare with"
    exit 0
fi
base=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
for candidate in $base origin/main main; do
    if git cat-file -e "$candidate:protos" 2>/dev/null && git cat-file -e "$candidate:buf.yaml" 2>/dev/null; then
        before=$(mktemp -d)
        trap 'rm -rf "$before"' EXIT
        # An archive and not buf's own git input: this also works in a worktree and in a shallow clone.
        git archive "$candidate" protos buf.yaml | tar -x -C "$before"
        "$buf" breaking --against "$before"
        echo "buf breaking: nothing breaks since $candidate"
        exit 0
    fi
done
echo "buf breaking: neither a release nor main holds protos yet, so there is nothing to compare with"
