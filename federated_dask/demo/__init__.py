"""The main job over three sites on this machine: ``federated-dask demo``."""
