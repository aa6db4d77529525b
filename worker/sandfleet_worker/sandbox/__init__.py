"""Run one job in a fresh gVisor sandbox on this machine.

It knows no Celery and no Redis, and is usable alone.
"""
