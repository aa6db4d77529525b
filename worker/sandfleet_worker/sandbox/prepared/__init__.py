"""Prepared spares: sandboxes whose interpreter is up, with its imports done, before a job comes."""
