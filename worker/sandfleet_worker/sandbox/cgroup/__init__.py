"""A sandbox's cgroup on v1 and v2, and the kernel's counters there."""
