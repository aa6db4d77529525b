"""Images built from recipes: a base, packages of Debian and of Python, and files of one's own."""
