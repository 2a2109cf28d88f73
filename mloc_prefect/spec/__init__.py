"""Reading MLOC specs: YAML text in, `Workflow` and diagnostics out.

Every error and warning has its source position, and a file is read as far as possible so that one pass finds all of
them. The package knows the task types only through their models, and nothing of plans, executors or Prefect.

* `construct`: builds plain data and positions from YAML nodes.
* `declared_parameters`: the block `params:`, and the check of values.
* `deep_merge`: deep copy and merge of data with positions.
* `diagnostic_report`: collects the diagnostics of one file.
* `expand`: one document to one effective document per task.
* `loader`: the entry points `read_spec`, `load_spec` and `load_workflow`.
* `locate`: where a value of an effective document was written.
* `overrides`: `--set path=value`.
* `required_fields`: fields that the base document must have.
* `scalars`: YAML scalars to JSON values.
* `secrets`: finds and masks secrets in specs.
* `spec_schema`: JSON Schema of a spec, for editors.
* `syntax`: text to a YAML node tree.
* `unknown_fields`: advice on fields that no task reads.
* `validate`: checks each task's spec against the model of its task type.
* `workflow`: `Workflow` and `TaskNode`, the result of loading.
* `yaml_errors`: errors of the YAML parser as one-line messages.
"""
