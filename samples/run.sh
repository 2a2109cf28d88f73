#!/bin/sh
# Submits a spec, waits for it, and downloads the results of every task, with three of the other samples.
#   samples/run.sh task.yaml DIRECTORY
set -eu
: "${2:?usage: samples/run.sh task.yaml DIRECTORY}"
here=$(dirname "$0")

ids=$("$here/submit.sh" "$1")
# shellcheck disable=SC2086  # one argument for each id
"$here/poll.sh" $ids
for id in $ids; do
    "$here/download.sh" "$id" "$2/$id"
done
