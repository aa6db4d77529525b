"""Facts and tools of the operating system that every part of the worker uses: threads, child processes, descriptors, logs."""
