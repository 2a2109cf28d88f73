#!/bin/sh
# Waits until tasks have ended. Exit code: 0 all DONE, 5 one FAILED or CANCELLED, 2 the state of one is unavailable.
#   samples/poll.sh TASK-ID...
set -eu
: "${1:?usage: samples/poll.sh TASK-ID...}"
. "$(dirname "$0")/common.sh"

code=0
for id in "$@"; do
    while :; do
        record=$(call "$MLOC_URL/api/v1/tasks/$id") || {
            echo "$id: ${record:-no response}" >&2
            exit 2
        }
        # The last "status" is the task's own; a spec may contain others before it.
        status=$(printf '%s' "$record" | sed -n 's/.*"status":"\([A-Z]*\)".*/\1/p')
        case $status in
            DONE) echo "$id DONE"; break ;;
            FAILED | CANCELLED) echo "$id $status"; code=5; break ;;
        esac
        sleep "${POLL_SECONDS:-1}"
    done
done
exit $code
