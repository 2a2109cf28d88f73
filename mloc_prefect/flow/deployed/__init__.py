"""A spec as a Prefect deployment of its own, whose parameters are those of the spec.

The spec travels by content, as a parameter of the deployment that the form does not show. It must not know which
server, pool or command a deployment is made for.

Modules:

* `deployed_flow`: the flow that such deployments name
* `spec_deployment`: the deployment of a plan
"""
