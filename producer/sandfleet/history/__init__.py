"""The searchable past: ended runs in a file that `sandfleet-web` writes, or over HTTP from it."""
