"""The profile in which every part runs more than once: one description, and what is made from it.

Documents and tests come from the same description. It must not know how a part works, only how it is
started, reached, checked and stopped.

Modules:

* `topology`: the description: parts, commands, variables, ports, counts, health checks, grace periods
* `part_images`: the image and the user of each part, as deploy/Dockerfile has them
* `compose_file`: the description as deploy/compose.yaml
* `kubernetes_manifests`: the description as Kubernetes objects, and as values of Prefect's Helm chart
* `native_commands`: the description as commands on this machine, for `mloc up --profile ha`
"""
