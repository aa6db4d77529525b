"""A batch as a table: one row a job, in the order of submit, as JSON lines, CSV or Parquet."""
