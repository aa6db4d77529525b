"""The pages: what a fleet does, why jobs wait and fail, and what an operator does about it."""
