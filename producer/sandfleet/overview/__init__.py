"""Batches and jobs as people ask for them: which, how far, how they ended."""
