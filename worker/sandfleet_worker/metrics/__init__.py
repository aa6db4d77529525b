"""What a worker counts, and the endpoint where Prometheus reads it."""
