"""Small graph rewrites, one a file; each returns whether it changed the graph."""
