#!/usr/bin/env bash
# Runs tests on the oldest versions of what users install that pyproject.toml allows, in an environment of their own.
#
#     scripts/check_oldest.sh                     # all tests
#     scripts/check_oldest.sh tests/tuner         # some of them
#
# PYTHON is the interpreter; ENV the folder of the environment, which is kept and used again.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${ENV:-.cache/oldest}

if [ ! -e "$env/installed" ]; then
    "${PYTHON:-python3.10}" -m venv "$env"
    sed '/^dev = /,/^]/d; /^\(app\|baselines\|docs\|tracking\) = /d' pyproject.toml |
        grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' | grep -v hatchling | tr -d '"' | sed 's/>=/==/' >"$env/oldest.txt"
    tools="pytest pytest-timeout hypothesis"
    "$env/bin/python" -m pip install --quiet -c "$env/oldest.txt" -e ".[attacks,reports]" $tools
    touch "$env/installed"
fi
# What the oldest versions bring along is new, and deprecates what they call.
HF_HUB_OFFLINE=1 "$env/bin/python" -m pytest -q -W ignore::DeprecationWarning "${@:-tests}"
