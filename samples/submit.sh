#!/bin/sh
# Submits a spec and prints the ids of its tasks, one per line.
#   samples/submit.sh task.yaml
set -eu
: "${1:?usage: samples/submit.sh task.yaml}"
. "$(dirname "$0")/common.sh"

answer=$(call -X POST "$MLOC_URL/api/v1/tasks" -H 'Content-Type: text/yaml' --data-binary "@$1") || {
    echo "not accepted: $answer" >&2
    exit 2
}
printf '%s' "$answer" | grep -o '"task_id":"[^"]*"' | cut -d '"' -f 4
