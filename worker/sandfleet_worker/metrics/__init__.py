"""Counters of a worker, and the endpoint where Prometheus reads them."""
