"""The commands: what ``sandfleet-worker X`` does."""
