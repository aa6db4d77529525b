"""Takes jobs from Redis and runs each in a fresh gVisor sandbox."""
