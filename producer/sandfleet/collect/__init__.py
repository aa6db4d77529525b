"""Collect: outcomes as jobs end."""
