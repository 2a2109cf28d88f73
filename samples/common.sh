# Sourced by the other samples: the address of the endpoint, and curl with the token if there is one.
# MLOC_URL    address of the endpoint, default http://127.0.0.1:8000
# MLOC_TOKEN  its token, if it requires one

MLOC_URL=${MLOC_URL:-http://127.0.0.1:8000}

# Fails on error responses and shows them. The token is passed through a pipe, so it does not appear in process lists.
call() {
    if [ -n "${MLOC_TOKEN:-}" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$MLOC_TOKEN" | curl --silent --show-error --fail-with-body --config - "$@"
    else
        curl --silent --show-error --fail-with-body "$@"
    fi
}
