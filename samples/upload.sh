#!/bin/sh
# Uploads a file to the results of a task.
#   samples/upload.sh TASK-ID FILE
set -eu
: "${2:?usage: samples/upload.sh TASK-ID FILE}"
. "$(dirname "$0")/common.sh"

call -X POST "$MLOC_URL/api/v1/results/$1/files" -F "file=@$2"
echo
