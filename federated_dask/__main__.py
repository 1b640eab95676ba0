"""``python -m federated_dask`` is the command ``federated-dask``."""

from federated_dask.cli import main

if __name__ == "__main__":
    main()
