"""The next runs of jobs that did not end OK."""
