"""Output of commands for people: consoles, tables, progress, diagnostics, answers.

Everything here turns data into text. It must not know where the data comes from: a run on this machine and the tasks of
an endpoint share the same displays.

Modules:
    `console`: consoles on stdout and stderr, and JSON on stdout.
    `run_display`: a live stage table on a terminal, plain lines elsewhere.
    `run_progress`: the observer that collects what the displays show.
    `answers`: the first answers of a finished run.
    `diagnostic_text`: diagnostics in compiler style.
    `units`: sizes and durations as people write and read them.
"""
