#!/bin/sh
# Prints the workers and whether the endpoint can serve.
#   samples/workers.sh
set -eu
. "$(dirname "$0")/common.sh"

call "$MLOC_URL/readyz"
echo
call "$MLOC_URL/workers"
echo
