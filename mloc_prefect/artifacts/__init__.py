"""Files on disk: results and manifests of tasks, archives, checkpoints, models, data sets, copies of remote files.

It reads, writes, packs and fetches files, each either whole or absent. It must not know Prefect, stores of records, or
how a task is executed.

* `layout`: where the files of a task are
* `manifest`: `manifest.json`, whose creation commits a stage
* `task_result`: the result of a task for Python: rows, tables, metrics, files
* `private_files`: files for the owner only, or for one group
* `result_guard`: one writer of `responses.json` at a time, and none once the task is finished
* `atomic`: files that are either whole or absent
* `archive`: packs a folder into one file
* `unpack`: unpacks archives of unknown origin
* `tar_reader`: opens tar archives with bounded headers
* `checkpoint`: finds the folder that `checkpoint.load` names
* `imported_checkpoint`: unpacks fetched checkpoints, once for each task
* `trained_models`: folders and archives that trainings left
* `prepared_models`: small models from Python packages
* `mirrors`: where names of models and data sets resolve to
* `mirrors_file`: adds lines to a mirrors file
* `data_files`: finds the files of one split of a data set
* `cache`: local copies of remote folders and files
* `garbage`: removes old results
* `spec_rules`: judges the inputs of a spec, and what it would run
* `transfer`: sends and fetches files
"""
