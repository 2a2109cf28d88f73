#!/bin/sh
# Prints whether the endpoint is ready, and the workers.
#   samples/workers.sh
set -eu
. "$(dirname "$0")/common.sh"

call "$MLOC_URL/readyz"
echo
call "$MLOC_URL/workers"
echo
