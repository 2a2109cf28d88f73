"""Find what the libraries of a training refuse too late, or let pass.

The modules know rows, weights and errors, but neither task types nor TRL's trainers.

* `finite_weights`: weights that are NaN or infinite.
* `refusals`: errors of a library that every attempt would meet.
* `row_reading`: values of the data as text or chat messages.
"""
