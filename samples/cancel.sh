#!/bin/sh
# Cancels a task and everything that was submitted with it.
#   samples/cancel.sh TASK-ID
set -eu
: "${1:?usage: samples/cancel.sh TASK-ID}"
. "$(dirname "$0")/common.sh"

call -X POST "$MLOC_URL/api/v1/tasks/$1/cancel?submission=true"
echo
