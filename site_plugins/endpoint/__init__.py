"""The HTTP side of a site: one TLS port between its Dask cluster and the outside."""
