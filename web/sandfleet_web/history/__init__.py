"""The searchable past: the writer of the history file, and the answers of its JSON API."""
