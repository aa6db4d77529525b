"""Facts and tools of the operating system that every part of the worker uses.

They are threads, child processes, descriptors and logs.
"""
