"""The ways of ``sandfleet submit``: a file of jobs, scripts, a table, an array.

Each gives the specs of a batch.
"""
