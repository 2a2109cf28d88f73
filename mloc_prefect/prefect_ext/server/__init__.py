"""The Prefect server that we run ourselves: on SQLite, below one state directory, as a child of its owner.

`embedded` and `login_page` are imported by owners and need the standard library only; the others run in the server's
process. They must not know runs, workers or tasks: only Prefect's server and its database.

Modules:

* `embedded`: the server as its owner sees it
* `main`: the server's process, `python -m mloc_prefect.prefect_ext.server.main`
* `site_guard`: refuses foreign host names and pages of other sites
* `login_page`: the link that logs a browser in to Prefect's pages
* `sqlite`: write transactions one at a time, so that no request fails
* `prepare_database`: makes the database of several stock servers, once
* `redis_errors`: answers 503 instead of 500 while Redis is away
"""
