"""Languages: source code becomes plain specs, to compile it and to run it."""
