"""What the researcher uses: connections to sites, lazy datasets, and running plans."""
