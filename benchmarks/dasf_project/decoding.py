"""Arrays as they come."""

from base64 import b64decode

import xarray


def decode(value):
    """Make an array of what came."""
    if isinstance(value, xarray.DataArray):
        return value
    return xarray.open_dataarray(b64decode(value))
