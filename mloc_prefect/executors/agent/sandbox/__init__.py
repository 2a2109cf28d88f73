"""A child process that runs code which a model wrote, shut off from everything of this machine.

The child has namespaces of its own and limits. It must not know agents: it takes source text and returns output. Where
the machine does not allow the namespaces, nothing is run at all.

* `code_sandbox`: the owner's side: starts the child, reads a bounded part of its output, ends it in time.
* `sandbox_init`: the first program of the child, which locks itself in and starts the code.
* `syscall_filter`: the system calls that the code may make.
"""
