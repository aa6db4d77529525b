"""Submit: specs are checked, encoded and sent."""
