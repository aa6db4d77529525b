"""The way to the workers and back: the values that cross it, the interface, and Redis as its implementation."""
