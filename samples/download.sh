#!/bin/sh
# Downloads the result of a task and the files that its manifest lists.
#   samples/download.sh TASK-ID DIRECTORY
set -eu
: "${2:?usage: samples/download.sh TASK-ID DIRECTORY}"
. "$(dirname "$0")/common.sh"

mkdir -p "$2"
call -o "$2/responses.json" "$MLOC_URL/api/v1/results/$1" || {
    echo "$1: $(cat "$2/responses.json" 2>/dev/null)" >&2    # the response is an error message, not a result
    rm -f "$2/responses.json"
    exit 2
}
echo "$2/responses.json"
manifest=$(call "$MLOC_URL/api/v1/results/$1/files/manifest.json" 2>/dev/null) || exit 0
# One entry per line; files have a sha256, directories do not.
printf '%s' "$manifest" | tr -d '\n' | sed 's/}/}\n/g' | grep '"sha256"' |
    sed -n 's/.*"name": *"\([^"/]*\)".*/\1/p' | while read -r name; do
    [ "$name" = responses.json ] && continue
    call -o "$2/$name" "$MLOC_URL/api/v1/results/$1/files/$name"
    echo "$2/$name"
done
