"""What a spec may read and run on this machine: the lists of both, and the rules.

Standard library only, because executors import it in environments without our other dependencies. It must not know
mirrors, stores or engines; `artifacts.spec_rules` applies the rules to whole specs.

Modules:

* `agent_configurations`: what agents may do: configurations of the operator, and how specs narrow them
* `input_roots`: which files of this machine a submitted spec may read
* `local_inputs`: how the text of a spec names something on this machine
* `remote_code`: everything that can run code that comes with a spec, a model or a data set, and the operator's consent
* `spec_calls`: the fields of specs that make a worker call another host
* `spec_inputs`: the fields of specs that name files, folders, models and data sets
"""
