"""The commands of `mloc` that work on this machine, one module each.

A module holds the options, the help text and the output of its command. It must not hold the work itself, which other
packages do and which is imported when the command runs.

Modules:
    `check`: `mloc validate` and `mloc plan`.
    `run`: `mloc run`.
    `schema`: `mloc schema`.
    `templates`: `mloc templates`.
    `models`: `mloc models`.
    `env`: `mloc env`.
    `doctor`: `mloc doctor`; `doctor_task_types`, `doctor_machine`, `doctor_agents`, `doctor_finding`:
        its parts.
    `selftest`: `mloc selftest`.
    `ps`: `mloc ps` and `mloc down`.
    `gc`: `mloc gc`.
    `deploy`: `mloc deploy`.
    `up`: `mloc up`.
    `service_commands`: `mloc serve`, `mloc bridge` and `mloc worker start`.
"""
