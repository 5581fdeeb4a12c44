#!/bin/sh
# Make the secret files that docker-compose.yml mounts, once: a second run changes nothing but what it is given.
# STRIPE_API_KEY and PAYOUTS_WEBHOOK_SECRETS, which nobody can make up, are for the profile `payouts`.
set -eu
cd "$(dirname "$0")/.."
mkdir -p -m 0700 .secrets
if [ ! -e .secrets/postgres_password ]; then
    # Hexadecimal, so that it needs no quoting inside a URL.
    password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    printf 'postgresql://tallystick:%s@postgres:5432/tallystick\n' "$password" > .secrets/database_url
    printf '%s\n' "$password" > .secrets/postgres_password
fi
[ -z "${STRIPE_API_KEY:-}" ] || printf '%s\n' "$STRIPE_API_KEY" > .secrets/stripe_api_key
[ -z "${PAYOUTS_WEBHOOK_SECRETS:-}" ] || printf '%s\n' "$PAYOUTS_WEBHOOK_SECRETS" > .secrets/webhook_secrets
# Compose mounts them as they are, and the container's account is another: the folder is what keeps others out.
chmod 0644 .secrets/*
echo "secrets: .secrets/"
