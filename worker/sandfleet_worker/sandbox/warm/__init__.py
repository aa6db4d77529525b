"""Sandboxes that are booted before their job comes."""
