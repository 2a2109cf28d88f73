"""Diagnostics: errors and warnings about a spec, each with its source position.

Plain data that every other package may use. It knows neither YAML nor task types, and it imports nothing of ours.

* `diagnostic`: `Diagnostic`, one error or warning, and the suggestion of a similar name.
* `masking`: the one masking of secrets: by names of fields, in URLs, and of known values.
* `positions`: `Positions`, line and column of every value of a document.
* `printable`: text for terminals, with control characters as escapes.
* `printable_logging`: the same for lines of logs.
"""
