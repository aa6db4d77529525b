"""The transport to the workers: its values, its interface, and its implementation on Redis."""
