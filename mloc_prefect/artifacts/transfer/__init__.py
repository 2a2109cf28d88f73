"""Sends and fetches files: results to a destination, archives to an endpoint or a store, checkpoints from a URL.

Every request obeys the rules of `outgoing`. It must not know why a file is sent or fetched.

* `outgoing`: allowed hosts, redirects, headers, and URLs in messages
* `own_services`: our own services, which no spec may call
* `embedded_addresses`: the IPv4 addresses that IPv6 addresses stand for
* `pinned_connection`, `pinned_transport`, `pinned_session`: let `urllib`, `httpx` and `aiohttp` connect to the address
  that was judged
* `delivery`: sends a finished result to an http destination
* `artifact_upload`: uploads the files that a result names
* `artifact_store`: stores files behind fsspec URLs
* `store_destination`: copies results to an fsspec URL
* `file_download`: downloads one file, resumed after a break
"""
