#!/bin/sh
# Prints what happens to tasks and workers as it happens, until SECONDS have passed (default: for ever).
#   samples/listen.sh [SECONDS]
set -eu
. "$(dirname "$0")/common.sh"

code=0
call --no-buffer --max-time "${1:-0}" "$MLOC_URL/api/v1/events" || code=$?
[ "$code" -eq 28 ] || exit "$code"    # 28: the time is over
