"""Where each task of an expression runs, and what crosses each link. Pure."""
