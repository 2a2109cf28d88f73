"""The hardware of this machine: what it has, as the driver shows it or as the settings declare it.

It reads and never changes a setting of a device. It must not know who uses a device (`leases`) nor how (`executors`).

* `gpus` are devices, and which of them satisfy a request.
* `nvml` reads the GPUs that this process may use, and the memory that processes hold on them.
* `inventory` is all that may be used: cores, memory, GPUs, tags.
* `host_memory` adds the GPU memory of executor hosts to their descriptions.
"""
