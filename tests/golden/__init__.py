"""Golden plans of the templates; `update.py` rewrites them."""
