"""One sandbox as processes: bundle, runsc, init, supervision, clean-up."""
