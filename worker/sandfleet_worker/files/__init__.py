"""Files of jobs between the store and a sandbox: a cache of inputs, and a spool of what comes out."""
