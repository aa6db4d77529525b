"""Sandfleet's parts of Flower."""
