"""Webhooks: taken from Redis, signed, sent, and tried again."""
