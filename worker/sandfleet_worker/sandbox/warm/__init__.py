"""Spares: sandboxes that are booted before their job comes."""
