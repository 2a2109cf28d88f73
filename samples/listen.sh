#!/bin/sh
# Prints what happens to tasks and workers as it happens, until SECONDS have passed (default: for ever).
#   samples/listen.sh [SECONDS]
set -eu
. "$(dirname "$0")/common.sh"

code=0
# What curl says of errors is kept until its code is known: 28, the time is over, is no error.
{ errors=$(call --no-buffer --max-time "${1:-0}" "$MLOC_URL/api/v1/events" 2>&1 >&3) || code=$?; } 3>&1
[ "$code" -ne 28 ] || exit 0
[ -z "$errors" ] || echo "$errors" >&2
exit "$code"
