"""Files of jobs between the store and a sandbox: a cache of inputs, a spool of outputs."""
