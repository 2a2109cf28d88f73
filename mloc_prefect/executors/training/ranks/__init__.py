"""One training in several processes.

Starts them, forwards their events, and turns their failures into one. Knows nothing of what they train.

* `launch`: the side of the host.
* `rank_main`: the launcher process and the training processes.
"""
