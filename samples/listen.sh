#!/bin/sh
# Prints messages about tasks and workers as they arrive, for SECONDS (default: until interrupted).
#   samples/listen.sh [SECONDS]
set -eu
. "$(dirname "$0")/common.sh"

code=0
# Error messages of curl are held back until its exit code is known: 28 (time limit reached) is not an error.
{ errors=$(call --no-buffer --max-time "${1:-0}" "$MLOC_URL/api/v1/events" 2>&1 >&3) || code=$?; } 3>&1
[ "$code" -ne 28 ] || exit 0
[ -z "$errors" ] || echo "$errors" >&2
exit "$code"
