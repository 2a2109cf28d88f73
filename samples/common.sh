# Read by the other samples: where the endpoint is, and curl with the token if there is one.
# MLOC_URL    address of the endpoint, default http://127.0.0.1:8000
# MLOC_TOKEN  its token, if it wants one

MLOC_URL=${MLOC_URL:-http://127.0.0.1:8000}

# Fails on error answers and shows them; the token goes through a pipe, so that no list of processes shows it.
call() {
    if [ -n "${MLOC_TOKEN:-}" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$MLOC_TOKEN" | curl --silent --show-error --fail-with-body --config - "$@"
    else
        curl --silent --show-error --fail-with-body "$@"
    fi
}
