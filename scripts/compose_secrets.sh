#!/bin/sh
# Make the secret files that docker-compose.yml mounts, once: a second run changes nothing.
set -eu
cd "$(dirname "$0")/.."
mkdir -p -m 0700 .secrets
if [ ! -e .secrets/postgres_password ]; then
    # Hexadecimal, so that it needs no quoting inside a URL.
    password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    printf 'postgresql://tallystick:%s@postgres:5432/tallystick\n' "$password" > .secrets/database_url
    printf '%s\n' "$password" > .secrets/postgres_password
    # Compose mounts them as they are, and the container's account is another: the folder is what keeps others out.
    chmod 0644 .secrets/*
fi
echo "secrets: .secrets/"
