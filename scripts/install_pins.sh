#!/bin/sh
# Usage: install_pins.sh VENV REQUIREMENTS
# Make the virtual environment VENV if it is missing and install the hashed pins of REQUIREMENTS into it.
set -eu
venv=$1 requirements=$2
python=${PYTHON:-python3}

if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Tallystick needs Python 3.11 or newer; $python is not. Name another one: make PYTHON=python3.12" >&2
        exit 1
    }
    # Debian packs ensurepip apart: without it, the pip that belongs to $python installs from outside.
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    else
        "$python" -m venv --without-pip "$venv"
    fi
fi

if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    pip="$venv/bin/python -m pip"
else
    pip="$python -m pip --python $venv/bin/python"
fi

echo "Installing $requirements into $venv"
# Word splitting is meant: $pip is a command with its arguments.
$pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore \
    --require-hashes --requirement "$requirements"
