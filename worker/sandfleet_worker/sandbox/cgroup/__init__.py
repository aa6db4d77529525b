"""A sandbox's cgroup on v1 and v2, and what the kernel counts there."""
