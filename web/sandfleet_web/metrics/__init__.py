"""The fleet's metrics, which one process serves for all workers."""
